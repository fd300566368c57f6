"""Calls in worker processes: start notices, and interruption by a flag and a signal."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.concurrent.interruptible_calls import CallMonitor, run_call
from rhapsody.backends.workers.interrupts import INTERRUPT
from rhapsody.backends.workers.pickling import RemoteTraceback, dump_call, load_outcome
from rhapsody.errors import TaskExecutionError
from tests.support import functions
from tests.support.waiting import until


def outcome_of(function: Any, *args: Any, directory: str = "") -> Any:
    return load_outcome("task.1", run_call(dump_call("task.1", function, args, {}), "0", directory))


@pytest.fixture(autouse=True)
def restored_signal_handler() -> Iterator[None]:
    before = signal.getsignal(INTERRUPT)
    yield
    signal.signal(INTERRUPT, before)


@pytest_asyncio.fixture
async def monitor() -> AsyncIterator[CallMonitor]:
    monitor = CallMonitor()
    yield monitor
    monitor.close()


def send_start_notices(monitor: CallMonitor, *call_ids: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        for call_id in call_ids:
            worker.sendto(f"{call_id} {os.getpid()}".encode(), f"{monitor.directory}/starts")


def test_result_is_returned() -> None:
    assert outcome_of(lambda value: value + 1, 1) == 2


def test_coroutine_is_awaited() -> None:
    assert outcome_of(asyncio.sleep, 0, "fine") == "fine"


def test_interrupt_while_the_loop_is_made_ends_the_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted() -> asyncio.AbstractEventLoop:
        (tmp_path / "0").touch()
        os.kill(os.getpid(), INTERRUPT)
        return make()

    make = asyncio.new_event_loop
    monkeypatch.setattr("asyncio.events.new_event_loop", interrupted)
    with pytest.raises(TaskExecutionError, match="Interrupted: cancelled"):
        outcome_of(asyncio.sleep, 60, directory=str(tmp_path))


def test_exception_is_raised_with_the_remote_traceback() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        outcome_of(functions.fail, ValueError, "no")
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_remote_traceback_has_the_cause_of_the_exception() -> None:
    def fail() -> None:
        raise ValueError("no") from KeyError("reason")

    # Pickling drops causes, unless Dask has been imported: its tblib makes exceptions keep them.
    with pytest.raises(ValueError, match="no") as caught:
        outcome_of(fail)
    assert "'reason'" in str(caught.value.__cause__)


def test_unpicklable_result_is_an_error() -> None:
    with pytest.raises(TaskExecutionError, match="its result, a frame, cannot be pickled"):
        outcome_of(sys._getframe)


def test_call_runs_even_if_the_program_has_ended(tmp_path: Path) -> None:
    assert outcome_of(functions.add, 1, directory=str(tmp_path / "missing")) == 2


async def test_start_notice_reports_the_start_of_a_call(monitor: CallMonitor) -> None:
    started = asyncio.Event()
    call_id = monitor.register(lambda pid: started.set())
    assert not monitor.has_started(call_id)
    send_start_notices(monitor, call_id)
    await asyncio.wait_for(started.wait(), 20)
    assert monitor.has_started(call_id)
    monitor.forget(call_id)
    assert not monitor.has_started(call_id)


async def test_start_notice_of_a_forgotten_call_is_ignored(monitor: CallMonitor) -> None:
    forgotten, awaited = (
        monitor.register(lambda pid: pytest.fail("it was forgotten")),
        monitor.register(lambda pid: None),
    )
    monitor.forget(forgotten)
    send_start_notices(monitor, forgotten, awaited)
    assert monitor.has_started(awaited)
    assert not monitor.has_started(forgotten)


async def test_flag_of_an_interrupted_call_outlives_the_monitor() -> None:
    monitor = CallMonitor()
    call_id, future = monitor.register(lambda pid: None), Future[Any]()
    monitor.interrupt(call_id, future)
    monitor.close()
    data = dump_call("task.1", functions.add, (1,), {})
    with pytest.raises(TaskExecutionError, match="cancelled before it started"):
        load_outcome("task.1", run_call(data, call_id, monitor.directory))
    future.set_result(None)
    assert not os.path.exists(monitor.directory)


def block_loop(path: Path) -> None:
    path.touch()
    time.sleep(60)


async def block_loop_later(path: Path) -> None:
    await asyncio.sleep(0)
    block_loop(path)


@pytest.mark.parametrize("function", [block_loop, block_loop_later], ids=["sync", "async"])
async def test_running_call_is_interrupted(
    monitor: CallMonitor, function: Any, tmp_path: Path
) -> None:
    call_id = monitor.register(lambda pid: None)
    data = dump_call("task.1", function, (tmp_path / "runs",), {})
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        future = executor.submit(run_call, data, call_id, monitor.directory)
        await until((tmp_path / "runs").exists)
        began = time.monotonic()
        monitor.interrupt(call_id, future)
        outcome = await asyncio.wait_for(asyncio.wrap_future(future), 30)
        assert time.monotonic() - began < 20
    with pytest.raises(TaskExecutionError, match="Interrupted: cancelled"):
        load_outcome("task.1", outcome)
