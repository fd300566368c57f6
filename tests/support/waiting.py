"""Waiting, with a bound, for what raises no event."""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 20.0


async def until(condition: Callable[[], object], limit: float = LIMIT_S) -> None:
    """Look again and again until a condition holds; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        await asyncio.sleep(0.002)
