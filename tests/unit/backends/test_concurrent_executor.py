"""Which executor runs functions: the backend's own, or one that is given."""

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import (
    BackendError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.service import THREAD_NAME
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate, hold
from tests.support import functions
from tests.support.concurrent_runner import Runner
from tests.support.processes import wait_gone


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
async def test_a_callers_executor_is_never_shut_down(make: Callable[[int], Executor]) -> None:
    with make(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            assert backend.executor is executor
            assert await Runner(backend).call(functions.add, 1) == 2
        assert await asyncio.wrap_future(executor.submit(functions.add, 2)) == 3


async def test_its_own_ends_with_it() -> None:
    backend = ConcurrentExecutionBackend("process", max_workers=1)
    runner = Runner(backend)
    assert backend.executor is None
    worker = await runner.call(functions.pid)
    await backend.shutdown()
    assert backend.executor is None
    assert wait_gone(worker) == []


async def test_a_process_that_will_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.setattr("rhapsody.backends.concurrent.STOP_GRACE_SECONDS", 0.2)
    address = gate.address

    def stubborn() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        hold(*address, "task.1")

    backend = ConcurrentExecutionBackend("process", max_workers=1)
    runner = Runner(backend)
    await backend.submit_tasks([runner.function(stubborn)])
    await gate.started("task.1")
    await backend.shutdown()
    await gate.ended("task.1")


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
async def test_a_shut_down_executor_fails_tasks_with_the_reason(
    make: Callable[[int], Executor],
) -> None:
    executor = make(1)
    executor.shutdown()
    async with ConcurrentExecutionBackend(executor) as backend:
        runner = Runner(backend)
        with pytest.raises(BackendError, match=r"executor does not take tasks: .* shutdown"):
            await runner.call(functions.add, 1)
        tasks = [runner.function(functions.add, n) for n in range(20)]
        assert await runner.run(*tasks) == ["FAILED"] * 20


async def test_an_executor_that_cannot_start_threads_fails_tasks_with_the_reason() -> None:
    failing = ThreadPoolExecutor(1, initializer=functions.fail, initargs=(ValueError,))
    with failing as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = Runner(backend)
            for _ in range(2):
                with pytest.raises(BrokenExecutor, match="initializer failed"):
                    await runner.call(functions.add, 1)


async def test_what_waits_in_an_executor_that_is_shut_down_is_cancelled(gate: Gate) -> None:
    executor = ThreadPoolExecutor(1)
    async with ConcurrentExecutionBackend(executor) as backend:
        runner = Runner(backend)
        await backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        waiting = [runner.function(functions.add, n) for n in range(3)]
        await backend.submit_tasks(waiting)
        executor.shutdown(wait=False, cancel_futures=True)
        ends = [(await runner.reports.end(task["uid"])).state for task in waiting]
        assert ends == ["CANCELED"] * 3
        gate.release("held")
        assert (await runner.reports.end("held")).state == "DONE"


async def test_a_callers_own_class_cannot_block_the_owners_loop() -> None:
    threads: list[str] = []

    class Watched(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread().name)
            return super().submit(*args, **kwargs)

    with Watched(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            assert await Runner(backend).call(functions.add, 1) == 2
    assert threads == [THREAD_NAME]


async def test_a_shutdown_leaves_running_threads_behind_and_starts_no_more(
    gate: Gate, tmp_path: Path
) -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    runner = Runner(backend)
    held = samples.held("function", "held", gate)
    await backend.submit_tasks([held])
    await gate.started("held")
    waiting = [runner.function(Path.touch, tmp_path / str(n)) for n in range(300)]
    await backend.submit_tasks(waiting[:3])
    await backend.submit_tasks(waiting[3:])
    await backend.shutdown()
    for task in waiting:
        assert runner.reports.states(task["uid"]) == ["CANCELED"]
    gate.release("held")
    await gate.ended("held")
    assert await runner.call(functions.add, 1) == 2
    await backend.shutdown()
    assert runner.reports.states("held") == ["RUNNING", "CANCELED"]
    assert held.get("return_value") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("executor", ["fibre", 3])
def test_anything_else_is_refused(executor: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a concurrent\.futures\.Executor, 'thread'"):
        ConcurrentExecutionBackend(executor)


@pytest.mark.parametrize("field", ["max_workers", "max_children"])
def test_a_size_is_at_least_one(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        ConcurrentExecutionBackend(**{field: 0})  # type: ignore[arg-type]
