"""Waiting with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

__all__ = ["done_within"]


async def done_within(awaitable: Awaitable[Any], seconds: float | None) -> bool:
    """Wait for something, but not longer than so many seconds; then it is cancelled.

    Not `asyncio.wait_for`: before Python 3.12 that loses a cancellation which comes in the same
    pass of the loop as the result.

    Args:
        awaitable: What to wait for; its result is dropped.
        seconds: The bound; None is no bound.

    Returns:
        Whether it is done.
    """
    waiting = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([waiting], timeout=seconds)
        return waiting.done()
    finally:
        waiting.cancel()
