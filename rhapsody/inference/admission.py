"""Admission control: the bound on prompts that are queued or in flight."""

from __future__ import annotations

import asyncio
from collections import deque

from rhapsody.errors import OverloadedError

__all__ = ["Admission"]


class Admission:
    """Limits the number of pending prompts. Waiting prompts are admitted in order.

    Args:
        limit: Maximum number of prompts pending at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._empty: list[asyncio.Future[None]] = []

    def try_enter(self, prompts: int = 1) -> None:
        """Admit several prompts: all of them or none.

        Raises:
            OverloadedError: The limit is reached, or other prompts are waiting.
        """
        if self._waiting or self.pending + prompts > self.limit:
            raise OverloadedError(self.pending + len(self._waiting), self.limit)
        self.pending += prompts

    async def enter(self) -> None:
        """Admit one prompt; wait while the limit is reached."""
        if not self._waiting and self.pending < self.limit:
            self.pending += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # `leave` has counted this prompt already
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self, prompts: int = 1) -> None:
        """Count prompts as finished, and admit waiting ones in their place."""
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

    async def wait_empty(self) -> None:
        """Wait until no prompt is pending."""
        if self.pending:
            waiting = asyncio.get_running_loop().create_future()
            self._empty.append(waiting)
            await waiting
