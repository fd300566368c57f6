"""What functions raise, in threads and processes."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody.api.errors import (
    TaskExecutionError,
)
from rhapsody.backends.process_calls import RemoteTraceback
from tests.support import functions
from tests.support.concurrent_runner import Runner


async def test_it_comes_back_with_its_fields(either: Runner) -> None:
    with pytest.raises(functions.FieldError, match="no licence") as caught:
        await either.call(functions.fail, functions.FieldError, 7, "no licence")
    assert (caught.value.code, caught.value.reason) == (7, "no licence")


@pytest.mark.parametrize(
    "error", [SystemExit, StopIteration, KeyboardInterrupt, asyncio.CancelledError]
)
async def test_one_that_would_end_a_loop_is_wrapped(
    error: type[BaseException], either: Runner
) -> None:
    with pytest.raises(TaskExecutionError, match=error.__name__):
        await either.call(functions.fail, error, 3)


async def test_the_pool_is_of_use_after_a_system_exit(either: Runner) -> None:
    with pytest.raises(TaskExecutionError):
        await either.call(functions.fail, SystemExit)
    assert await either.call(functions.add, 1) == 2


async def test_the_other_processs_traceback_is_its_cause(processes: Runner) -> None:
    with pytest.raises(ValueError, match="no") as caught:
        await processes.call(functions.fail, ValueError, "no")
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail\n    raise error(*args)" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (functions.StubbornError, (1, "stubborn")),
        (functions.LockedError, ()),
        (functions.FrozenError, ("frozen",)),
    ],
)
async def test_one_that_cannot_travel_is_described(
    error: type[Exception], args: tuple[Any, ...], processes: Runner
) -> None:
    with pytest.raises(TaskExecutionError, match=rf"it raised {error.__name__}: ") as caught:
        await processes.call(functions.fail, error, *args)
    assert "in fail" in str(caught.value.__cause__)


async def test_what_cannot_be_sent_is_refused_with_the_reason(processes: Runner) -> None:
    with pytest.raises(TaskExecutionError, match="arguments cannot be pickled"):
        await processes.call(functions.pid, threading.Lock())


async def test_what_cannot_be_returned_fails_by_its_type(processes: Runner) -> None:
    with pytest.raises(TaskExecutionError, match="its result, a lock, cannot be pickled"):
        await processes.call(functions.unpicklable)
