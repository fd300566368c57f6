"""The batcher: groups prompts into batches without delaying prompts that could start.

vLLM batches continuously by itself, so a fixed window in front of it only adds latency. While the
replicas have room, waiting prompts are sent at the end of the current pass of the loop. While all
replicas are busy, prompts queue, and are sent when there is room, when `max_batch_size` prompts
wait, or when the oldest has waited `max_wait` seconds; `beyond` bounds how many are sent to busy
replicas. Which of them are sent follows their order.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Batcher", "Clock"]

T = TypeVar("T", bound=Hashable)

SMALL_QUEUE = 1024
ITEMS_PER_PASS = 1024
"""Items sent in one pass of the loop, unless a single batch is larger."""


class Clock(Protocol):
    """The clock and timers that the batcher needs; an asyncio loop has them."""

    def time(self) -> float:
        """Return the time in seconds; it never goes back."""

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Any:
        """Call `callback` after `delay` seconds. The handle returned has `cancel()`."""

    def call_soon(self, callback: Callable[[], Any]) -> Any:
        """Call `callback` in the next pass."""


class Batcher(Generic[T]):
    """Queues items of any type and dispatches them in batches.

    Args:
        dispatch: Sends one batch. The coroutine that it returns ends when the whole batch has
            ended; the next batch does not wait for that. The call itself must reserve the capacity
            that the batch needs, since `capacity` is called again right after it.
        capacity: Returns how many items could start now: 0 if all replicas are busy, None if no
            replica is ready. Nothing is sent while it returns None.
        max_batch_size: Maximum number of items in a batch.
        max_wait: Longest time an item waits while a replica is ready, in seconds.
        beyond: Returns how many items may be sent although all replicas are busy, when one has
            waited for `max_wait` or `max_batch_size` of them wait; None: any number.
        order: The place of an item: items with lower numbers are sent first; None: as they arrive.
        on_batch: Called for each batch with its items, and the seconds that each has waited.
        clock: The clock and timers; None: those of the running loop.
    """

    def __init__(
        self,
        dispatch: Callable[[list[T]], Coroutine[Any, Any, None]],
        capacity: Callable[[], int | None],
        *,
        max_batch_size: int,
        max_wait: float,
        beyond: Callable[[], int] | None = None,
        order: Callable[[T], float] | None = None,
        on_batch: Callable[[list[T], list[float]], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._capacity = capacity
        self._max_batch_size = max_batch_size
        self._max_wait = max_wait
        self._beyond = beyond
        self._on_batch = on_batch
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._order = order
        self._waiting: OrderedDict[T, float] = OrderedDict()
        """When each item arrived, the oldest first."""
        self._queue: list[tuple[float, int, T]] = []
        """A heap by order and arrival. It may hold items that do not wait any more."""
        self._last = self._first = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._flush_due = False
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T) -> None:
        """Add an item at the end."""
        self._waiting[item] = self._clock.time()
        self._last += 1
        self._push(item, self._last)
        self.wake()

    def _push(self, item: T, arrival: int) -> None:
        heapq.heappush(self._queue, (self._order(item) if self._order else 0, arrival, item))

    def put_back(self, items: Iterable[T]) -> None:
        """Add items before those of the same order, to be sent again."""
        # `_oldest_wait` looks at the first item only, so these count as waiting since then.
        since = next(iter(self._waiting.values()), self._clock.time())
        for item in reversed(list(items)):
            self._waiting[item] = since
            self._waiting.move_to_end(item, last=False)
            self._first -= 1
            self._push(item, self._first)
        self.wake()

    def remove(self, item: T) -> bool:
        """Remove an item. Returns False if it is not waiting."""
        if self._waiting.pop(item, None) is None:
            return False
        if len(self._queue) > 2 * len(self._waiting) + SMALL_QUEUE:
            self._queue = [entry for entry in self._queue if entry[2] in self._waiting]
            heapq.heapify(self._queue)
        return True

    def clear(self) -> list[T]:
        """Remove all waiting items and return them."""
        items = list(self._waiting)
        self._waiting.clear()
        self._queue.clear()
        return items

    def wake(self) -> None:
        """Check at the end of this pass whether items can be sent."""
        if self._waiting and not self._flush_due:
            self._flush_due = True
            self._clock.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        sent = 0
        while self._waiting:
            size = self._next_size()
            if not size:
                break
            if sent and sent + size > ITEMS_PER_PASS:
                self.wake()
                break
            self._send(size)
            sent += size
        self._set_timer()

    def _next_size(self) -> int:
        """Return how many items may be sent now."""
        capacity = self._capacity()
        if capacity is None:
            return 0
        waiting = min(len(self._waiting), self._max_batch_size)
        if capacity:
            return min(waiting, capacity)
        if waiting == self._max_batch_size or self._oldest_wait() >= self._max_wait:
            return waiting if self._beyond is None else min(waiting, self._beyond())
        return 0

    def _oldest_wait(self) -> float:
        return self._clock.time() - next(iter(self._waiting.values()))

    def _send(self, size: int) -> None:
        now = self._clock.time()
        batch: list[T] = []
        waits: list[float] = []
        while len(batch) < size:
            item = heapq.heappop(self._queue)[2]
            since = self._waiting.pop(item, None)
            if since is not None:
                batch.append(item)
                waits.append(now - since)
        if self._on_batch is not None:
            self._on_batch(batch, waits)
        sending = asyncio.get_running_loop().create_task(self._dispatch(batch))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._capacity() is not None:
            rest = max(self._max_wait - self._oldest_wait(), 0.0)
            if rest or self._beyond is None or self._beyond():  # else `wake` is called for room
                self._timer = self._clock.call_later(rest, self.wake)

    async def close(self) -> None:
        """Stop sending. Batches in flight are cancelled and awaited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
