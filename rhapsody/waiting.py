"""Waiting with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

__all__ = ["done_within"]


async def done_within(awaitable: Awaitable[Any], seconds: float | None) -> bool:
    """Wait for an awaitable for a limited time, then cancel it.

    Unlike `asyncio.wait_for` before Python 3.12, it does not lose a cancellation that arrives in
    the same iteration of the loop as the result.

    Args:
        awaitable: The awaitable; its result is dropped.
        seconds: The time limit; None: no limit.

    Returns:
        Whether it was done in time.
    """
    waiting = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([waiting], timeout=seconds)
        return waiting.done()
    finally:
        waiting.cancel()
