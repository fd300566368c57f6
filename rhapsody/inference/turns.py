"""Turns: many coroutines at once, started so that the loop gets to do other things in between."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["outcomes_of"]

T = TypeVar("T")

STARTS_PER_TURN = 1024
"""One batch, by default; starting as many takes some tens of milliseconds."""


async def outcomes_of(
    coroutines: Iterable[Coroutine[Any, Any, T]], timeout: float | None = None
) -> list[T | BaseException]:
    """Run coroutines side by side; cancelling this cancels them.

    Args:
        coroutines: Made one by one, as they are started.
        timeout: Seconds after which those that have not ended are cancelled.

    Returns:
        What each returned or raised, in order.
    """
    tasks: list[asyncio.Task[T]] = []
    try:
        for coroutine in coroutines:
            tasks.append(asyncio.ensure_future(coroutine))
            if len(tasks) % STARTS_PER_TURN == 0:
                await asyncio.sleep(0)
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes
