"""Bounded polling, for conditions that no event reports: the state of another process or thread."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

LIMIT_S = 30.0
"""Seconds until a test gives up."""

INTERVAL_S = 0.005


async def until(
    condition: Callable[[], object | Awaitable[object]], limit: float = LIMIT_S
) -> None:
    """Wait until a condition holds.

    Args:
        condition: A function, or a coroutine function.
        limit: Seconds to wait at most.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    deadline = time.monotonic() + limit
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"the condition did not hold within {limit} s"
        await asyncio.sleep(INTERVAL_S)


def until_blocking(condition: Callable[[], object], limit: float = LIMIT_S) -> None:
    """Wait as `until` does, in code that is not a coroutine."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {limit} s"
        time.sleep(INTERVAL_S)
