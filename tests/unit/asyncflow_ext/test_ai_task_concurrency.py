"""Many ai_tasks at once."""

import asyncio
from typing import Any

import pytest

from tests.support.engines import Echo
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncflow


async def test_slow_function_delays_no_other_task(flow: Any, ask: Any, three: Any) -> None:
    gate = asyncio.Event()

    @flow.ai_task
    async def slow() -> str:
        await gate.wait()
        return "slow"

    waiting = slow()
    assert await asyncio.wait_for(three(), LIMIT_S) == 3
    assert await asyncio.wait_for(ask("quick"), LIMIT_S) == "<quick?>"
    assert not waiting.done()
    gate.set()
    assert await waiting == "<slow>"


async def test_two_hundred_ai_tasks_run_concurrently(ask: Any, ai: Echo) -> None:
    responses = await asyncio.gather(*(ask(i) for i in range(200)))
    assert responses == [f"<{i}?>" for i in range(200)]
