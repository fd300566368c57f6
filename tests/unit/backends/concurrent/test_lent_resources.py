from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.concurrent.lent_resources import LentResources
from rhapsody.backends.concurrent.local_queue import request_of
from rhapsody.backends.core.accounts import Account, Capacity, Request
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work


class Machine:
    """A machine of 2 CPUs and 1000 bytes, with functions that have them."""

    def __init__(self, *functions: Request) -> None:
        self.account = Account([Capacity(Node("this machine", 2), 1000, 4)])
        self.cancelled: set[Work] = set()
        self.lent = LentResources(self.account, self.cancelled.__contains__)
        self.functions = [self.work_of("function", function=int) for _ in functions]
        for function, request in zip(self.functions, functions, strict=True):
            function.grant = self.account.take(request)

    def work_of(self, uid: str, **fields: Any) -> Work:
        return Work({"uid": uid, **fields}, Attachment(ignore), ".")

    def add(self, **resources: Any) -> Work:
        work = self.work_of("executable", executable="true", resources=resources)
        self.lent.add(work, request_of(work))
        return work

    def take(self) -> Work | None:
        entry = self.lent.take()
        if entry is None:
            return None
        work, grant = entry
        work.grant = grant
        return work

    def release(self, work: Work) -> None:
        assert work.grant is not None
        self.account.release(work.grant)
        self.lent.release(work)


@pytest.mark.parametrize("resources", [{"cpus": 2}, {"memory": 900}])
def test_executable_borrows_what_waiting_functions_have(resources: dict[str, int]) -> None:
    machine = Machine(*[Request(cpus=1, memory=450)] * 2)
    first, second = machine.add(**resources), machine.add(**resources)
    machine.lent.lend(machine.functions[0])
    assert machine.take() is None
    machine.lent.lend(machine.functions[1])
    assert machine.take() is first
    assert machine.take() is None
    machine.release(first)
    assert machine.take() is second
    assert not machine.lent


def test_executable_borrows_nothing_of_a_function_that_waits_no_more() -> None:
    machine = Machine(Request(cpus=2))
    machine.add(cpus=2)
    machine.lent.lend(machine.functions[0])
    machine.lent.take_back(machine.functions[0])
    assert machine.take() is None


def test_smaller_executable_overtakes_one_that_does_not_fit() -> None:
    machine = Machine(Request(cpus=1), Request(cpus=1))
    machine.lent.lend(machine.functions[0])
    machine.add(cpus=2)
    small = machine.add(cpus=1)
    assert machine.take() is small


def test_executable_starts_beside_an_exclusive_function_and_a_hold() -> None:
    machine = Machine(Request(cpus=1, exclusive=True))
    machine.account.hold(Request(cpus=2))
    machine.lent.lend(machine.functions[0])
    executable = machine.add(cpus=2)
    assert machine.take() is executable
    machine.release(executable)
    assert machine.account.take(Request(cpus=1)) is None  # the function still runs alone


def test_cancelled_and_dropped_executables_are_left_out() -> None:
    machine = Machine(Request(cpus=2))
    machine.lent.lend(machine.functions[0])
    cancelled, dropped, left = (machine.add(cpus=1) for _ in range(3))
    machine.cancelled.add(cancelled)
    machine.lent.drop(dropped, request_of(dropped))
    assert machine.take() is left
    assert machine.take() is None
