"""Cancelling an ai_task, its block, or its engine."""

import asyncio
from typing import Any

import pytest

from tests.support.engines import Echo, MakeFlow
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.asyncflow


async def test_cancel_before_start_asks_no_backend(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    asked = ask()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    other = ask("other")
    await until(lambda: ai.asked)
    assert ai.prompts == ["other"]
    other.cancel()


async def test_cancel_while_waiting_leaves_dependency_running(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    plain: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    first = ask("first")
    asked = ask([plain, first])
    await until(lambda: ai.asked)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not plain.cancelled()
    ai.let_go.set()
    assert await first == "<first>"
    assert ai.prompts == ["first"]


async def test_cancel_stops_running_function(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, _ = held
    events: list[str] = []

    @flow.ai_task
    async def slow() -> str:
        events.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")
        return "never"

    asked = slow()
    await until(lambda: events)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: events == ["started", "ended"])
    assert ai.asked == []


async def test_cancel_reaches_responding_backend(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    asked = ask()
    await until(lambda: ai.asked)
    assert asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: ai.cancelled == 1)


async def test_cancel_reaches_named_backend(make: MakeFlow) -> None:
    one, two = Echo("one", held=True), Echo("two", held=True)
    flow = await make(one, two)

    @flow.ai_task(backend="one")
    async def ask() -> str:
        return "hi"

    kept, asked = ask(), ask(backend="two")
    await until(lambda: one.asked and two.asked)
    asked.cancel()
    await until(lambda: two.cancelled == 1)
    assert one.cancelled == 0
    one.let_go.set()
    assert await kept == "<hi>"


async def test_cancel_of_finished_task_does_nothing(ask: Any) -> None:
    asked = ask("hi")
    await asked
    assert asked.cancel() is False
    assert asked.result() == "<hi?>"


async def test_cancel_ends_dependents_of_ai_task(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held

    @flow.function_task
    async def after(_response: str) -> None:
        pass

    asked = ask()
    waiting = after(asked)
    await until(lambda: ai.asked)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, LIMIT_S)


async def test_wait_for_timeout_cancels_prompt(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    asked = ask()
    await until(lambda: ai.asked)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asked, 0.01)
    await until(lambda: ai.cancelled == 1)


async def test_cancel_of_block_cancels_its_ai_tasks(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    inside = []

    @flow.block
    async def pipeline() -> None:
        inside.append(ask())
        await asyncio.Event().wait()

    block = pipeline()
    await until(lambda: ai.asked)
    block.cancel()
    with pytest.raises(asyncio.CancelledError):
        await block
    await until(lambda: ai.cancelled == 1)
    assert inside[0].cancelled()


async def test_shutdown_cancels_ai_task_and_prompt(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    tasks = [ask(i) for i in range(5)]
    await until(lambda: len(ai.asked) == 5)
    await flow.shutdown()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await until(lambda: ai.cancelled == 5)
