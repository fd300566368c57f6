"""Queue that hands items to a handler in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["BatchQueue"]

T = TypeVar("T")
R = TypeVar("R")


class BatchQueue(Generic[T, R]):
    """Collects items while the handler is busy, and hands them over together.

    Args:
        handle: Takes a batch and returns one outcome per item. An exception among the outcomes is
            raised to the caller that put the item; a `CancelledError` cancels its future.
        size: Maximum number of items in a batch.
        parallel: Maximum number of batches that are handled at once.
        linger: Seconds to wait between two batches, so that the next one is larger. The first
            batch is never delayed.
    """

    def __init__(
        self,
        handle: Callable[[list[T]], Awaitable[Sequence[Any]]],
        size: int,
        parallel: int = 1,
        linger: float = 0.0,
    ) -> None:
        self._handle = handle
        self._size = size
        self._parallel = parallel
        self._linger = linger
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._consumers: set[asyncio.Task[None]] = set()
        self._active = 0
        self._error: Exception | None = None

    def put(self, item: T) -> asyncio.Future[R]:
        """Add an item and return the future of its outcome.

        Cancelling the future before its batch is handed over removes the item.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        if self._error is not None:
            future.set_exception(self._error)
            return future
        self._waiting.append((item, future))
        if self._active < self._parallel:
            self._active += 1
            consumer = loop.create_task(self._consume())
            self._consumers.add(consumer)
            consumer.add_done_callback(self._consumers.discard)
        return future

    async def _consume(self) -> None:
        try:
            while self._waiting:
                await self._handle_batch()
                if self._linger:
                    await asyncio.sleep(self._linger)
        finally:
            self._active -= 1  # not in a done callback: an item put before that needs a consumer

    async def _handle_batch(self) -> None:
        # A separate method, so that no reference to a batch is kept during the linger time.
        count = min(self._size, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(count)]
        batch = [(item, future) for item, future in taken if not future.done()]
        if not batch:
            return
        outcomes: Sequence[Any] = ()
        try:
            outcomes = await self._handle([item for item, _ in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        except asyncio.CancelledError:
            outcomes = [self._error] * len(batch)
            raise
        finally:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)

    async def close(self, error: Exception) -> None:
        """Cancel all batches; every waiting and later caller gets the error."""
        self._error = error
        consumers = tuple(self._consumers)
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, asyncio.CancelledError):
        future.cancel()
    elif isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
