"""Functions in an executor of the caller whose processes die, and cancelled ones."""

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import WorkerDied
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner, cancel_one_and_kill_worker


async def test_broken_pool_of_caller_fails_its_tasks() -> None:
    with ProcessPoolExecutor(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = ConcurrentRunner(backend)
            for _ in range(2):
                with pytest.raises(WorkerDied):
                    await runner.call(functions.leave, 1)


async def test_cancelled_queued_task_and_dead_worker_in_callers_pool(
    gate: Gate,
) -> None:
    with ProcessPoolExecutor(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            ends = await cancel_one_and_kill_worker(ConcurrentRunner(backend), gate)
    assert ends == [*["FAILED"] * 10, "CANCELED"]


async def test_cancelled_calls_leave_no_flags_or_ids(gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            await backend.submit_tasks([samples.held("function", "held.0", gate)])
            await gate.started("held.0")
            await backend.submit_tasks(
                [samples.held("function", f"held.{n}", gate) for n in range(1, 4)]
            )
            for n in range(4):
                assert await backend.cancel_task(f"held.{n}")
            await ConcurrentRunner(backend).call(functions.add, 1)
            assert backend._calls is not None
            monitor = backend._calls._monitor
            kept = {name for name in os.listdir(monitor.directory) if not name.startswith("owner@")}
            assert kept == {"starts"}
            assert not monitor._pids
            assert not monitor._on_start
