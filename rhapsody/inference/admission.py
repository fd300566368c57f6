"""The bound on prompts that are queued or in flight."""

from __future__ import annotations

import asyncio
from collections import deque

from rhapsody.api.errors import OverloadedError

__all__ = ["Admission"]


class Admission:
    """Counts prompts in and out; first come, first served.

    Args:
        limit: Most prompts inside at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._empty: list[asyncio.Future[None]] = []

    def try_enter(self, prompts: int = 1) -> None:
        """Let prompts in, or refuse them all.

        Raises:
            OverloadedError: There is no room, or others wait for it.
        """
        if self._waiting or self.pending + prompts > self.limit:
            raise OverloadedError(self.pending + len(self._waiting), self.limit)
        self.pending += prompts

    async def enter(self) -> None:
        """Let one prompt in as soon as there is room."""
        if not self._waiting and self.pending < self.limit:
            self.pending += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever leaves hands its place over, so the count stays as it is
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self, prompts: int = 1) -> None:
        """Let prompts out; their places go to those who wait."""
        self.pending -= prompts
        while self._waiting and self.pending < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.pending += 1
                turn.set_result(None)
        if not self.pending:
            for waiting in self._empty:
                if not waiting.done():
                    waiting.set_result(None)
            self._empty.clear()

    async def until_empty(self) -> None:
        """Wait until nobody is inside."""
        if self.pending:
            waiting = asyncio.get_running_loop().create_future()
            self._empty.append(waiting)
            await waiting
