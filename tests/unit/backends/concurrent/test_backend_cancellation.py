import asyncio
from pathlib import Path

from rhapsody.testing import samples
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner


async def test_cancel_interrupts_sync_function_in_process(
    processes: ConcurrentRunner, gate: Gate
) -> None:
    worker = await processes.call(functions.pid)
    await processes.backend.submit_tasks([samples.held("function", "held", gate)])
    await gate.started("held")
    assert await processes.backend.cancel_task("held")
    await gate.ended("held")
    assert await processes.call(functions.pid) == worker


async def test_cancel_interrupts_blocking_async_function_in_process(
    processes: ConcurrentRunner, gate: Gate
) -> None:
    address = gate.address

    async def blocks() -> None:
        hold(*address, "held")

    task = processes.function(blocks)
    await processes.submit(task)
    await gate.started("held")
    assert await processes.backend.cancel_task(task["uid"])
    await gate.ended("held")


async def test_cancelled_async_function_can_clean_up(either: ConcurrentRunner, gate: Gate) -> None:
    address = gate.address

    async def tidy() -> None:
        try:
            await hold_async(*address, "held")
        finally:
            await asyncio.sleep(0)
            hold(*address, "cleaned up")

    task = either.function(tidy)
    await either.submit(task)
    await gate.started("held")
    assert await either.backend.cancel_task(task["uid"])
    await gate.started("cleaned up")
    gate.release("cleaned up")


async def test_cancelled_queued_task_never_runs(
    either: ConcurrentRunner, gate: Gate, tmp_path: Path
) -> None:
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
