"""Aged queues: items in the order of their arrival, with a head start for each step of priority."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from heapq import heappop, heappush
from typing import Generic, TypeVar

__all__ = ["AGING_SECONDS", "AgedQueue", "Arrivals", "Key"]

T = TypeVar("T")

AGING_SECONDS = 60.0
"""An item that waits this long overtakes new items of the next higher priority."""

Key = tuple[float, int]
"""The arrival of an item, earlier by `AGING_SECONDS` for each step of priority; and its number."""

RETURNED: Key = (float("-inf"), 0)
"""The key of items that were put back: before all others."""


class Arrivals:
    """Numbers the arrivals in queues whose keys are compared with each other.

    Args:
        clock: The time in seconds; it never goes back.
    """

    __slots__ = ("_number", "clock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._number = 0

    def next(self, count: int = 1) -> int:
        """Return the number of the next arrival, and skip the numbers of `count` arrivals."""
        number = self._number + 1
        self._number += count
        return number


class AgedQueue(Generic[T]):
    """Items that wait, by the time that they waited and by priority. Not thread-safe.

    The key of an item never changes. So items are sorted once, and none waits for ever.

    Args:
        arrivals: Shared by queues whose keys are compared. None: its own.
    """

    __slots__ = ("_arrivals", "_in_order", "_others", "_returned", "_runs")

    def __init__(self, arrivals: Arrivals | None = None) -> None:
        self._arrivals = arrivals or Arrivals()
        self._returned: deque[T] = deque()
        # Items of priority 0 arrive in the order of their keys. Those that arrived together share
        # a time, since a tuple for each item would take more memory than the rest of the queue.
        self._in_order: deque[T] = deque()
        self._runs: deque[_Run] = deque()
        self._others: list[tuple[Key, T]] = []

    def __len__(self) -> int:
        return len(self._returned) + len(self._in_order) + len(self._others)

    def add(self, item: T, priority: int = 0) -> None:
        """Add an item."""
        if priority == 0:
            self.extend((item,))
        else:
            time = self._arrivals.clock() - AGING_SECONDS * priority
            heappush(self._others, ((time, self._arrivals.next()), item))

    def extend(self, items: Collection[T]) -> None:
        """Add items of priority 0."""
        if items:
            self._in_order.extend(items)
            number = self._arrivals.next(len(items))
            self._runs.append(_Run(self._arrivals.clock(), number, len(items)))

    def put_back(self, item: T) -> None:
        """Add an item before all others."""
        self._returned.appendleft(item)

    @property
    def key(self) -> Key | None:
        """The key of the first item; None if there is none."""
        if self._returned:
            return RETURNED
        if not self._in_order:
            return self._others[0][0] if self._others else None
        first = self._runs[0].key
        return min(first, self._others[0][0]) if self._others else first

    def first(self) -> T:
        """Return the first item.

        Raises:
            IndexError: There is none.
        """
        if self._returned:
            return self._returned[0]
        return self._others[0][1] if self._is_other_first() else self._in_order[0]

    def pop(self) -> T:
        """Remove and return the first item.

        Raises:
            IndexError: There is none.
        """
        if self._returned:
            return self._returned.popleft()
        if self._is_other_first():
            return heappop(self._others)[1]
        item = self._in_order.popleft()
        run = self._runs[0]
        run.number += 1
        run.left -= 1
        if not run.left:
            self._runs.popleft()
        return item

    def _is_other_first(self) -> bool:
        return bool(self._others) and (not self._in_order or self._others[0][0] < self._runs[0].key)

    def clear(self) -> list[T]:
        """Remove and return all items, in order."""
        return [self.pop() for _ in range(len(self))]


class _Run:
    """Items of priority 0 that arrived together: their time, the number of the first, the rest."""

    __slots__ = ("left", "number", "time")

    def __init__(self, time: float, number: int, left: int) -> None:
        self.time = time
        self.number = number
        self.left = left

    @property
    def key(self) -> Key:
        return self.time, self.number
