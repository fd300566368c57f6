from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.concurrent.local_queue import LocalQueue, request_of
from rhapsody.backends.core.accounts import PLAIN, Capacity
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.errors import ResourceError
from rhapsody.gpus import GPUS
from tests.support.waiting import until


def work_of(uid: str, executable: bool = False, **fields: Any) -> Work:
    kind = {"executable": "true"} if executable else {"function": int}
    return Work({"uid": uid, **kind, **fields}, Attachment(ignore), ".")


class Starts:
    """Records what a queue starts."""

    def __init__(self) -> None:
        self.executables: list[str] = []
        self.wakes = 0
        self.cancelled: set[Work] = set()

    def is_active(self, work: Work) -> bool:
        return work not in self.cancelled

    def start(self, work: Work) -> None:
        self.executables.append(work.uid)

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def starts() -> Starts:
    return Starts()


@pytest.fixture
def queue(starts: Starts) -> LocalQueue:
    capacity = Capacity(Node("this machine", 2, ("0",)), 10**9, 1)
    return LocalQueue(capacity, starts.is_active, starts.start, starts.wake)


def add(queue: LocalQueue, *works: Work) -> None:
    for work in works:
        queue.add(work, request_of(work))


def test_threads_take_functions_in_order(queue: LocalQueue) -> None:
    first, second, third = (work_of(uid) for uid in "abc")
    queue.add_plain([first, second, third])
    assert [queue.take(None), queue.take(None), queue.take(None)] == [first, second, None]
    assert queue.take(first) is third


def test_executables_start_as_children_end(queue: LocalQueue, starts: Starts) -> None:
    first, second = work_of("a", executable=True), work_of("b", executable=True)
    add(queue, first, second)
    assert starts.executables == ["a"]
    queue.release(first)
    assert starts.executables == ["a", "b"]


def test_executable_that_asks_for_cpus_takes_places(queue: LocalQueue, starts: Starts) -> None:
    large = work_of("large", executable=True, resources={"cpus": 2})
    function = work_of("function")
    add(queue, large)
    queue.add_plain([function])
    assert starts.executables == ["large"]
    assert queue.take(None) is None
    queue.release(large)
    assert starts.wakes == 1
    assert queue.take(None) is function


def test_cancelled_task_makes_way(queue: LocalQueue, starts: Starts) -> None:
    running = work_of("running")
    add(queue, running)
    assert queue.take(None) is running
    exclusive = work_of("exclusive", resources={"exclusive": True})
    add(queue, exclusive)
    assert queue.take(None) is None
    starts.cancelled.add(exclusive)
    assert queue.take(running) is None
    assert len(queue) == 0


def test_claimed_function_is_taken_once(queue: LocalQueue) -> None:
    claimed, taken = work_of("a"), work_of("b")
    queue.add_plain([claimed, taken])
    assert queue.claim(claimed)
    assert not queue.claim(claimed)
    assert queue.take(None) is taken
    assert not queue.claim(taken)
    assert queue.take(None) is None


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpus": 3}, "cpu not available: it asks for 3 CPUs; this machine has 2 CPUs, 1 GPU"),
        ({"gpus": 2}, "gpu not available: it asks for 1 CPU and 2 GPUs"),
        ({"memory": "2 GB"}, "memory not available: it asks for 1 CPU and 2 GB of memory"),
    ],
)
def test_impossible_task_is_refused(
    queue: LocalQueue, resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        add(queue, work_of("large", resources=resources))


async def test_function_waits_for_gpu_of_a_replica(queue: LocalQueue, starts: Starts) -> None:
    used_by_replica = [("this machine", "0")]
    assert GPUS.take(used_by_replica)
    function = work_of("function", resources={"gpus": 1})
    add(queue, function)
    assert queue.take(None) is None
    GPUS.release(used_by_replica)
    await until(lambda: starts.wakes == 1)
    assert queue.take(None) is function
    queue.release(function)


def test_plain_function_asks_for_one_cpu() -> None:
    assert request_of(work_of("a")) is PLAIN
