"""Chunks: several calls of one function as one task. Workers import it, so it imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["call_each", "call_each_async"]


def call_each(fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function once for each tuple of arguments."""
    return [fn(*args) for args in calls]


async def call_each_async(fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Await the call of an async function for each tuple of arguments."""
    return [await fn(*args) for args in calls]
