"""Running many coroutines at once without blocking the loop while they start and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from rhapsody.inference.pacing import Pace
from rhapsody.waiting import done_within

__all__ = ["gather_outcomes"]

T = TypeVar("T")


async def gather_outcomes(
    coroutines: Iterable[Coroutine[Any, Any, T]],
    timeout: float | None = None,
    at_once: int | None = None,
) -> list[T | BaseException]:
    """Run coroutines concurrently. Cancelling this cancels them.

    They are started and cancelled in parts, and the loop runs in between.

    Args:
        coroutines: Consumed one by one, as the coroutines are started.
        timeout: Seconds from now after which unfinished coroutines are cancelled.
        at_once: How many run at a time; None: all. Python's garbage collector holds the
            interpreter lock while it looks at what they hold.

    Returns:
        What each coroutine returned or raised, in order. Those that did not run have a
        CancelledError.
    """
    running = _Running[T](at_once)
    since = time.monotonic()

    def left() -> float | None:
        return None if timeout is None else max(since + timeout - time.monotonic(), 0)

    try:
        await running.start(coroutines, left)
        await running.wait(left())
    finally:
        await running.cancel()
        await running.wait()
    return running.outcomes


class _Running(Generic[T]):
    """Tasks that run, and the outcomes of those that do not."""

    def __init__(self, at_once: int | None) -> None:
        self.outcomes: list[T | BaseException] = []
        self._at_once = at_once
        self._tasks: dict[int, asyncio.Task[T]] = {}
        self._has_room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._cancelled = asyncio.CancelledError()

    async def start(
        self, coroutines: Iterable[Coroutine[Any, Any, T]], left: Callable[[], float | None]
    ) -> None:
        pace = Pace()
        for position, coroutine in enumerate(coroutines):
            self.outcomes.append(self._cancelled)
            try:
                await pace.take()
                has_room = await self._wait_room(left)
            except BaseException:
                coroutine.close()
                raise
            if not has_room:
                coroutine.close()
                continue
            task = asyncio.ensure_future(coroutine)
            self._tasks[position] = task
            self._idle.clear()
            task.add_done_callback(partial(self._ended, position))

    async def _wait_room(self, left: Callable[[], float | None]) -> bool:
        """Wait until another coroutine may start. Returns False if the time is over."""
        if self._at_once is None or len(self._tasks) < self._at_once:
            return True
        self._has_room.clear()
        return await done_within(self._has_room.wait(), left())

    def _ended(self, position: int, task: asyncio.Task[T]) -> None:
        del self._tasks[position]
        self.outcomes[position] = self._outcome(task)
        self._has_room.set()
        if not self._tasks:
            self._idle.set()

    def _outcome(self, task: asyncio.Task[T]) -> T | BaseException:
        if task.cancelled():
            return self._cancelled
        error = task.exception()
        return task.result() if error is None else error

    async def wait(self, seconds: float | None = None) -> None:
        await done_within(self._idle.wait(), seconds)

    async def cancel(self) -> None:
        pace = Pace()
        left = iter(list(self._tasks.values()))
        try:
            for task in left:
                task.cancel()
                await pace.take()
        except asyncio.CancelledError:  # cancelled once more
            for task in left:
                task.cancel()
            raise
