"""Calls of coroutine functions that several callers share while they run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

__all__ = ["SharedCalls"]


class SharedCalls:
    """Calls in progress. A caller that asks for the same one waits for its result."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._callers: Counter[asyncio.Task[Any]] = Counter()

    async def get(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of a call.

        The call is cancelled when its last caller has been cancelled.

        Args:
            key: Equal for calls with the same result.
            call: Makes the call, if none with this key is in progress.

        Raises:
            Exception: The call's own.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(call())
        self._callers[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._callers[task] -= 1
            if not self._callers[task]:
                del self._callers[task], self._running[key]
                task.cancel()
