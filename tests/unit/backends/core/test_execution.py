"""The execution of a task: times, places and attempts."""

import os
import pickle
import resource
import socket
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.backends.core.execution import Execution, Location, this_thread
from tests.support.foreign import ForeignBackend
from tests.support.sessions import boom, work

MIB = 1024 * 1024


def test_times_are_in_utc_and_in_order() -> None:
    before = datetime.now(timezone.utc)
    now = time.monotonic()
    execution = Execution.ending_now(now - 3, now - 1, Location("n1", 7, "w1"), 2)
    assert execution.started is not None
    assert execution.submitted < execution.started < execution.ended
    assert execution.ended - before < timedelta(seconds=20)
    assert execution.waiting_seconds == pytest.approx(2)
    assert execution.running_seconds is not None
    assert execution.running_seconds >= 1
    assert execution[3:] == ("n1", 7, "w1", 2, None)


def test_unknown_start_and_place_are_none() -> None:
    execution = Execution.ending_now(time.monotonic(), None, None, 1)
    assert (execution.started, execution.waiting_seconds, execution.running_seconds) == (None,) * 3
    assert (execution.host, execution.pid, execution.worker) == (None, None, None)
    assert pickle.loads(pickle.dumps(execution)) == execution


def test_location_of_a_thread_is_one_object() -> None:
    assert this_thread() is this_thread()
    name = threading.current_thread().name
    assert this_thread() == (socket.gethostname(), os.getpid(), name)


async def test_function_in_a_thread() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = session.submit(threading.current_thread)
        assert task.get("execution") is None
        await task
    execution = task.execution
    assert (execution.host, execution.pid) == (socket.gethostname(), os.getpid())
    assert execution.worker == task.return_value.name
    assert execution.attempts == 1
    assert execution.submitted <= execution.started <= execution.ended


async def test_executable_and_function_in_a_process() -> None:
    async with Session([ConcurrentExecutionBackend("process", max_workers=1)]) as session:
        code = "import os; print(os.getpid())"
        child = ComputeTask(sys.executable, arguments=["-c", code])
        function = ComputeTask(function=os.getpid)
        await session.submit_tasks([child, function])
        await session.wait_tasks([child, function])
    assert str(child.execution.pid) == child.stdout.strip()
    assert (function.execution.pid, function.execution.host) == (
        function.return_value,
        socket.gethostname(),
    )


def use(mebibytes: int) -> None:
    """Use memory, and take long enough to be measured."""
    used = b"x" * (mebibytes * MIB)
    time.sleep(0.01)
    del used


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_peak_memory_of_a_function_in_a_process_is_its_own() -> None:
    async with Session([ConcurrentExecutionBackend("process", max_workers=1)]) as session:
        large, small = session.submit(use, 200), session.submit(use, 1)
        await session.wait_tasks([large, small])
    assert large.execution.pid == small.execution.pid
    assert large.execution.peak_memory_bytes > 200 * MIB
    assert 0 < small.execution.peak_memory_bytes < large.execution.peak_memory_bytes - 100 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_peak_memory_is_without_kept_segments() -> None:
    def add_one(array: Any) -> Any:
        return array + 1

    array = np.ones(100 * MIB // 8)
    async with Session([ConcurrentExecutionBackend("process", max_workers=1)]) as session:
        for _ in range(4):
            await session.submit(add_one, array)
        small = session.submit(use, 1)
        await small
    assert 0 < small.execution.peak_memory_bytes < 150 * MIB


async def test_peak_memory_of_a_function_in_a_thread_is_not_known() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = session.submit(use, 1)
        await task
    assert task.execution.peak_memory_bytes is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs the memory of a child")
@pytest.mark.parametrize("exit_code", [0, 3])
async def test_peak_memory_of_an_executable(exit_code: int) -> None:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 64 * MIB
    code = f"used = b'x' * {size}; raise SystemExit({exit_code})"
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(sys.executable, arguments=["-c", code])
        await session.submit_tasks(task)
        await session.wait_tasks(task)
    assert task.exit_code == exit_code
    assert size < task.execution.peak_memory_bytes < size + 200 * MIB
    assert "peak_memory_bytes" not in task


async def test_failed_and_repeated_task() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=boom, retries=2, backoff=0)
        await session.submit_tasks(task)
        await session.wait_tasks(task)
    assert (task.state, task.execution.attempts) == ("FAILED", 3)


async def test_backends_that_cannot_tell_the_place() -> None:
    async with Session([NoopExecutionBackend(), ForeignBackend()]) as session:
        tasks: list[Any] = [ComputeTask(function=work, backend=n) for n in ("noop", "foreign")]
        tasks.append(AITask("hi"))
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    for task in tasks:
        assert task.execution.submitted <= task.execution.ended
        assert (task.execution.host, task.execution.pid) == (None, None)
