"""The batcher: single prompts in, batches out, with no wait that helps nobody.

vLLM batches continuously by itself, so a fixed window in front of it only adds latency. While the
replicas have room, what has arrived leaves at the end of the current pass of the loop. While they
are busy to their limit, prompts gather, and leave when there is room, when `max_batch_size` of
them wait, or when the oldest has waited `max_wait` seconds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Batcher", "Clock"]

T = TypeVar("T", bound=Hashable)


class Clock(Protocol):
    """What the batcher needs of a loop's clock; an asyncio loop is one."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Any:
        """Call back after `delay` seconds; the handle returned has `cancel()`."""

    def call_soon(self, callback: Callable[[], Any]) -> Any:
        """Call back at the end of the current pass."""


class Batcher(Generic[T]):
    """Gathers items and dispatches them in batches; it knows nothing of what they are.

    Args:
        dispatch: Sends one batch; what it returns ends when all of the batch has ended, and the
            next batch does not wait for that. The call itself takes the capacity that the batch
            needs: `capacity` is asked again right after it.
        capacity: How many items could start at once now: 0 where all are busy to their limit,
            None where nothing is ready, and then nothing leaves.
        max_batch_size: Most items in a batch.
        max_wait: Longest time an item waits while something is ready, in seconds.
        on_batch: Told of each batch that leaves: how long each of its items waited, in seconds.
        clock: The running loop where None.
    """

    def __init__(
        self,
        dispatch: Callable[[list[T]], Coroutine[Any, Any, None]],
        capacity: Callable[[], int | None],
        *,
        max_batch_size: int,
        max_wait: float,
        on_batch: Callable[[list[float]], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._capacity = capacity
        self._max_batch_size = max_batch_size
        self._max_wait = max_wait
        self._on_batch = on_batch
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._waiting: OrderedDict[T, float] = OrderedDict()
        self._sending: set[asyncio.Task[None]] = set()
        self._flush_due = False
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T) -> None:
        """Add an item at the end."""
        self._waiting[item] = self._clock.time()
        self.wake()

    def put_back(self, items: Iterable[T]) -> None:
        """Add items at the front, in their order: they were sent and came back."""
        # As old as the oldest here: the first one in the queue tells how long it has waited.
        since = next(iter(self._waiting.values()), self._clock.time())
        for item in reversed(list(items)):
            self._waiting[item] = since
            self._waiting.move_to_end(item, last=False)
        self.wake()

    def remove(self, item: T) -> bool:
        """Take an item out. Returns False where it does not wait here."""
        return self._waiting.pop(item, None) is not None

    def clear(self) -> list[T]:
        """Take everything out that waits, and return it."""
        items = list(self._waiting)
        self._waiting.clear()
        return items

    def wake(self) -> None:
        """Look again at the end of this pass: an item came, or there is room."""
        if self._waiting and not self._flush_due:
            self._flush_due = True
            self._clock.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        while self._waiting:
            size = self._next_size()
            if not size:
                break
            self._send(size)
        self._set_timer()

    def _next_size(self) -> int:
        """How many may leave now."""
        capacity = self._capacity()
        if capacity is None:
            return 0
        waiting = min(len(self._waiting), self._max_batch_size)
        if capacity:
            return min(waiting, capacity)
        if waiting == self._max_batch_size or self._oldest_wait() >= self._max_wait:
            return waiting
        return 0

    def _oldest_wait(self) -> float:
        return self._clock.time() - next(iter(self._waiting.values()))

    def _send(self, size: int) -> None:
        now = self._clock.time()
        taken = [self._waiting.popitem(last=False) for _ in range(size)]
        if self._on_batch is not None:
            self._on_batch([now - since for _, since in taken])
        batch = [item for item, _ in taken]
        sending = asyncio.get_running_loop().create_task(self._dispatch(batch))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._capacity() is not None:
            rest = max(self._max_wait - self._oldest_wait(), 0.0)
            self._timer = self._clock.call_later(rest, self.wake)

    async def close(self) -> None:
        """Stop sending: batches on their way are cancelled and awaited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
