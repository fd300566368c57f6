"""Calls for worker processes: there and back, marked when they start, interrupted by flag."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends.process_calls import (
    INTERRUPT,
    Marks,
    RemoteTraceback,
    dump_call,
    load_outcome,
    run_call,
)
from tests.support import functions


def there_and_back(function: Any, *args: Any, directory: str = "") -> Any:
    return load_outcome(run_call(dump_call("task.1", function, args, {}), "0", directory))


@pytest.fixture(autouse=True)
def own_signal_handler() -> Iterator[None]:
    """These calls run here, where a worker's handler has no place."""
    before = signal.getsignal(INTERRUPT)
    yield
    signal.signal(INTERRUPT, before)


@pytest.fixture
async def marks() -> AsyncIterator[Marks]:
    marks = Marks()
    yield marks
    marks.close()


def test_a_value_comes_back() -> None:
    assert there_and_back(lambda value: value + 1, 1) == 2


def test_an_exception_comes_back_with_the_remote_traceback() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        there_and_back(functions.fail, ValueError, "no")
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_a_cause_of_its_own_is_kept() -> None:
    def fail() -> None:
        raise ValueError("no") from KeyError("reason")

    # Pickling drops causes, and the text of the remote traceback has them. Where Dask has been
    # imported, its tblib has exceptions keep them.
    with pytest.raises(ValueError, match="no") as caught:
        there_and_back(fail)
    assert "'reason'" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_no_future_can_hold_is_described(error: type[BaseException]) -> None:
    with pytest.raises(TaskExecutionError, match=f"'task.1'.*it raised {error.__name__}"):
        there_and_back(functions.fail, error)


def test_a_head_that_has_gone_is_not_missed(tmp_path: Path) -> None:
    assert there_and_back(functions.add, 1, directory=str(tmp_path / "gone")) == 2


async def test_a_mark_tells_that_a_call_has_started(marks: Marks) -> None:
    started = asyncio.Event()
    token = marks.expect(started.set)
    assert not marks.started(token)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        worker.sendto(f"{token} {os.getpid()}".encode(), f"{marks.directory}/marks")
    await asyncio.wait_for(started.wait(), 20)
    assert marks.started(token)
    marks.forget(token)
    assert not marks.started(token)


async def test_a_mark_of_a_forgotten_call_is_passed_over(marks: Marks) -> None:
    forgotten, awaited = marks.expect(pytest.fail), marks.expect(lambda: None)
    marks.forget(forgotten)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        for token in (forgotten, awaited):
            worker.sendto(f"{token} {os.getpid()}".encode(), f"{marks.directory}/marks")
    assert marks.started(awaited)
    assert not marks.started(forgotten)


async def test_the_flag_of_an_interrupted_call_outlives_the_marks() -> None:
    marks = Marks()
    token, future = marks.expect(lambda: None), Future[Any]()
    marks.interrupt(token, future)
    marks.close()
    data = dump_call("task.1", functions.add, (1,), {})
    with pytest.raises(TaskExecutionError, match="cancelled before it started"):
        load_outcome(run_call(data, token, marks.directory))
    future.set_result(None)
    assert not os.path.exists(marks.directory)
