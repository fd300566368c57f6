"""Tasks that are cancelled, in threads, in processes and as children."""

import asyncio
import os
from pathlib import Path

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support import functions
from tests.support.concurrent_runner import Runner
from tests.support.waiting import until


async def test_a_sync_function_in_a_process_is_interrupted(processes: Runner, gate: Gate) -> None:
    worker = await processes.call(functions.pid)
    await processes.backend.submit_tasks([samples.held("function", "held", gate)])
    await gate.started("held")
    assert await processes.backend.cancel_task("held")
    await gate.ended("held")
    assert await processes.call(functions.pid) == worker


async def test_an_async_function_that_blocks_is_interrupted_in_a_process(
    processes: Runner, gate: Gate
) -> None:
    address = gate.address

    async def blocks() -> None:
        hold(*address, "task.1")

    await processes.backend.submit_tasks([processes.function(blocks)])
    await gate.started("task.1")
    assert await processes.backend.cancel_task("task.1")
    await gate.ended("task.1")


async def test_an_async_function_can_clean_up(either: Runner, gate: Gate) -> None:
    address = gate.address

    async def tidy() -> None:
        try:
            await hold_async(*address, "task.1")
        finally:
            await asyncio.sleep(0)
            hold(*address, "cleaned up")

    await either.backend.submit_tasks([either.function(tidy)])
    await gate.started("task.1")
    assert await either.backend.cancel_task("task.1")
    await gate.started("cleaned up")
    gate.release("cleaned up")


async def test_a_queued_task_never_runs(either: Runner, gate: Gate, tmp_path: Path) -> None:
    await either.backend.submit_tasks([samples.held("function", "held", gate)])
    await gate.started("held")
    queued = [either.function(Path.touch, tmp_path / name) for name in ("one", "two", "three")]
    await either.backend.submit_tasks(queued)
    assert await either.backend.cancel_task(queued[1]["uid"])
    assert (await either.reports.end(queued[1]["uid"])).state == "CANCELED"
    gate.release("held")
    for task in (queued[0], queued[2]):
        assert (await either.reports.end(task["uid"])).state == "DONE"
    await either.call(functions.add, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "three"}


async def test_a_late_result_is_not_that_of_a_later_task_of_its_uid(gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_workers=2) as backend:
        runner = Runner(backend)
        await backend.submit_tasks([samples.held("function", "task.9", gate)])
        await gate.started("task.9")
        assert await backend.cancel_task("task.9")
        later = samples.function("task.9", hold, *gate.address, "later")
        await backend.submit_tasks([later])
        await gate.started("later")
        gate.release("task.9")
        await runner.call(functions.add, 1)  # by the thread that had the first
        assert runner.reports.states("task.9") == ["RUNNING", "CANCELED", "RUNNING"]
        gate.release("later")
        await until(lambda: later.get("return_value") == "later")


async def test_nothing_is_kept_of_cancelled_calls(processes: Runner, gate: Gate) -> None:
    await processes.backend.submit_tasks([samples.held("function", "held.0", gate)])
    await gate.started("held.0")
    await processes.backend.submit_tasks(
        [samples.held("function", f"held.{n}", gate) for n in range(1, 4)]
    )
    for n in range(4):
        assert await processes.backend.cancel_task(f"held.{n}")
    await processes.call(functions.add, 1)
    marks = processes.backend._marks
    assert marks is not None
    kept = {name for name in os.listdir(marks.directory) if not name.startswith("owner@")}
    assert kept == {"marks"}
    assert not marks._pids
    assert not marks._on_start
