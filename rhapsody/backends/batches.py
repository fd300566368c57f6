"""Items that come one by one, handed over together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Batches"]

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """Hands over together what comes while nobody has time for it.

    Args:
        handle: Takes a batch and returns one outcome for each item: an exception is raised to
            whoever waits for it, and so is a cancellation.
        size: Most items in a batch.
        parallel: Batches in hand at once.
        linger: Seconds between one batch and the next of the same hand, for more to come
            together where each batch has its price. The first does not wait.
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
        self._hands: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._closed: Exception | None = None

    def put(self, item: T) -> asyncio.Future[R]:
        """Add an item; the future is its outcome. Cancelling that takes the item back."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[R] = loop.create_future()
        if self._closed is not None:
            outcome.set_exception(self._closed)
            return outcome
        self._waiting.append((item, outcome))
        if self._busy < self._parallel:
            self._busy += 1
            hand = loop.create_task(self._work_off())
            self._hands.add(hand)
            hand.add_done_callback(self._hands.discard)
        return outcome

    async def _work_off(self) -> None:
        try:
            await self._work_off_all()
        finally:
            self._busy -= 1  # at once: what comes from now on needs another hand

    async def _work_off_all(self) -> None:
        while self._waiting:
            await self._work_off_one()
            if self._linger:
                await asyncio.sleep(self._linger)

    async def _work_off_one(self) -> None:
        # On its own, so that nothing of a batch is held on to while the hand lingers.
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
            outcomes = [self._closed] * len(batch)
            raise
        finally:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)

    async def close(self, error: Exception) -> None:
        """Stop at once; whoever waits, or comes later, gets the error."""
        self._closed = error
        hands = tuple(self._hands)
        for hand in hands:
            hand.cancel()
        await asyncio.gather(*hands, return_exceptions=True)
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
