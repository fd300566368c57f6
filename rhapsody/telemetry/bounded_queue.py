"""A bounded queue from any thread to one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["BoundedQueue"]

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A bounded queue that wakes its loop once for a burst of items.

    A full or closed queue drops further items and counts them in `dropped`.

    Args:
        maxlen: The maximum number of items.
        on_items: Called on the loop after items were put.
    """

    def __init__(self, maxlen: int, on_items: Callable[[], None]) -> None:
        self.dropped = 0
        self._items: deque[T] = deque()
        self._maxlen = maxlen
        self._on_items = on_items
        self._closed = False
        self._notified = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._drop_lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def bind(self) -> None:
        """Use the running loop; items that were put earlier wake it at once."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        if self._items:
            self._notify()

    def close(self) -> None:
        """Drop all further items."""
        self._closed = True

    def put(self, item: T) -> None:
        """Add an item; never blocks."""
        if self._closed or len(self._items) >= self._maxlen:
            with self._drop_lock:
                self.dropped += 1
            return
        self._items.append(item)
        if not self._notified:
            self._notify()

    def take(self, limit: int) -> list[T]:
        """Remove and return up to `limit` items, oldest first."""
        items: list[T] = []
        try:
            while len(items) < limit:
                items.append(self._items.popleft())
        except IndexError:
            pass
        return items

    def notify(self) -> None:
        """Schedule another call of `on_items`, as a new item would."""
        if not self._notified:
            self._notify()

    def _notify(self) -> None:
        if self._loop is None:
            return
        self._notified = True
        try:
            if threading.get_ident() == self._loop_thread:
                self._loop.call_soon(self._deliver)
            else:
                self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed; `take` still returns the items
            self._notified = False

    def _deliver(self) -> None:
        # Reset before `on_items` reads the queue: items put from now on notify again.
        self._notified = False
        self._on_items()
