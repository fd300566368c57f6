import asyncio
import subprocess
from collections.abc import AsyncIterator

import pytest

from rhapsody.processes import GROUP, ending_group
from rhapsody.testing.gate import PATIENCE_SECONDS, Gate, hold, hold_async


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with Gate() as gate:
        yield gate


async def test_release_lets_a_sync_function_continue(gate: Gate) -> None:
    held = asyncio.ensure_future(asyncio.to_thread(hold, *gate.address, "one"))
    await gate.started("one")
    assert not held.done()
    gate.release("one")
    assert await held == "one"
    await gate.ended("one")


async def test_release_lets_an_async_function_continue(gate: Gate) -> None:
    held = asyncio.ensure_future(hold_async(*gate.address, "one"))
    await gate.started("one")
    gate.release("one")
    assert await held == "one"
    await gate.ended("one")


async def test_tasks_are_released_one_by_one(gate: Gate) -> None:
    held = {uid: asyncio.ensure_future(hold_async(*gate.address, uid)) for uid in ("a", "b")}
    for uid in held:
        await gate.started(uid)
    gate.release("b")
    assert await held["b"] == "b"
    assert not held["a"].done()
    gate.release("a")
    assert await held["a"] == "a"


async def test_cancelled_task_is_noticed(gate: Gate) -> None:
    held = asyncio.ensure_future(hold_async(*gate.address, "one"))
    await gate.started("one")
    held.cancel()
    await gate.ended("one")


async def test_killed_command_is_noticed(gate: Gate) -> None:
    with subprocess.Popen(gate.command("one"), stdout=subprocess.DEVNULL, **GROUP) as process:
        await gate.started("one")
        with ending_group(process.pid):
            pass
        process.wait(PATIENCE_SECONDS)
    await gate.ended("one")


async def test_released_command_prints_its_uid(gate: Gate) -> None:
    with subprocess.Popen(gate.command("one"), stdout=subprocess.PIPE) as process:
        await gate.started("one")
        gate.release("one")
        out, _ = await asyncio.to_thread(process.communicate)
    assert out == b"one\n"


async def test_closing_the_gate_releases_its_tasks() -> None:
    async with Gate() as gate:
        held = asyncio.ensure_future(hold_async(*gate.address, "one"))
        await gate.started("one")
    assert await asyncio.wait_for(held, PATIENCE_SECONDS) == "one"
