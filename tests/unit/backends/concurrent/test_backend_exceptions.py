import asyncio
import threading
from typing import Any

import pytest

from rhapsody.backends.workers.pickling import RemoteTraceback
from rhapsody.errors import TaskExecutionError
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner


async def test_exception_keeps_its_fields(either: ConcurrentRunner) -> None:
    with pytest.raises(functions.FieldError, match="no licence") as caught:
        await either.call(functions.fail, functions.FieldError, 7, "no licence")
    assert (caught.value.code, caught.value.reason) == (7, "no licence")


@pytest.mark.parametrize(
    "error", [SystemExit, StopIteration, KeyboardInterrupt, asyncio.CancelledError]
)
async def test_loop_ending_exception_is_wrapped(
    error: type[BaseException], either: ConcurrentRunner
) -> None:
    with pytest.raises(TaskExecutionError, match=error.__name__):
        await either.call(functions.fail, error, 3)


async def test_pool_is_usable_after_system_exit(either: ConcurrentRunner) -> None:
    with pytest.raises(TaskExecutionError):
        await either.call(functions.fail, SystemExit)
    assert await either.call(functions.add, 1) == 2


async def test_remote_traceback_is_the_cause(processes: ConcurrentRunner) -> None:
    with pytest.raises(ValueError, match="no") as caught:
        await processes.call(functions.fail, ValueError, "no")
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail\n    raise error(*args)" in str(caught.value.__cause__)


async def test_frozen_exception_arrives_with_its_traceback(processes: ConcurrentRunner) -> None:
    task = processes.function(functions.fail, functions.FrozenEmptyError)
    assert await processes.run(task) == ["FAILED"]
    assert type(task["exception"]) is functions.FrozenEmptyError
    assert "in fail" in str(task["exception"].__cause__)


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (functions.LockedError, ()),
        (functions.FrozenError, ("frozen",)),
    ],
)
async def test_unpicklable_exception_is_described(
    error: type[Exception], args: tuple[Any, ...], processes: ConcurrentRunner
) -> None:
    with pytest.raises(TaskExecutionError, match=rf"it raised {error.__name__}: ") as caught:
        await processes.call(functions.fail, error, *args)
    assert "in fail" in str(caught.value.__cause__)


async def test_exception_with_a_constructor_of_its_own_arrives(processes: ConcurrentRunner) -> None:
    with pytest.raises(functions.StubbornError, match=r"stubborn \(1\)"):
        await processes.call(functions.fail, functions.StubbornError, 1, "stubborn")


async def test_unpicklable_argument_fails_with_reason(processes: ConcurrentRunner) -> None:
    with pytest.raises(TaskExecutionError, match="arguments cannot be pickled"):
        await processes.call(functions.pid, threading.Lock())


async def test_unpicklable_result_fails_with_its_type(processes: ConcurrentRunner) -> None:
    with pytest.raises(TaskExecutionError, match="its result, a lock, cannot be pickled"):
        await processes.call(functions.unpicklable)
