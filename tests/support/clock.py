"""A clock that advances only on request."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any


class Handle:
    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time and callbacks of an asyncio loop, with time in seconds set by a test."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: deque[Handle] = deque()
        self._later: list[tuple[float, int, Handle]] = []
        self._order = count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], Any]) -> Handle:
        handle = Handle(callback)
        self._soon.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Handle:
        handle = Handle(callback)
        heapq.heappush(self._later, (self.now + delay, next(self._order), handle))
        return handle

    def run_pass(self) -> None:
        """Run the callbacks that were due before this pass began, as a loop does."""
        for _ in range(len(self._soon)):
            handle = self._soon.popleft()
            if handle.callback is not None:
                handle.callback()

    def advance(self, seconds: float) -> None:
        """Advance time, and run every callback at its time."""
        end = self.now + seconds
        while self._soon:
            self.run_pass()
        while self._later and self._later[0][0] <= end:
            self.now, _, handle = heapq.heappop(self._later)
            if handle.callback is not None:
                handle.callback()
            while self._soon:
                self.run_pass()
        self.now = end
