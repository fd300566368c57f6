"""A bounded number of requests in progress."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Window"]


class Window:
    """The futures of requests in progress, and the first error that ends the run.

    Waiting costs the same however many there are.

    Args:
        size: How many may be in progress.
    """

    def __init__(self, size: int) -> None:
        self.running: set[asyncio.Future[Any]] = set()
        self.error: BaseException | None = None
        self.failed = asyncio.Event()
        """Set with the error."""
        self._size = size
        self._changed = asyncio.Event()

    def add(self, future: asyncio.Future[Any]) -> None:
        """Count a future until it is done. Its exception ends the run."""
        self.running.add(future)
        future.add_done_callback(self._end)

    def _end(self, future: asyncio.Future[Any]) -> None:
        self.running.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            self.fail(error)
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """End the run: those who wait get the error, the first of several."""
        self.error = self.error or error
        self.failed.set()
        self._changed.set()

    @property
    def is_full(self) -> bool:
        """Whether no other request may start now."""
        return len(self.running) >= self._size

    async def wait_room(self) -> None:
        """Wait until another request may start.

        Raises:
            BaseException: The error that ended the run.
        """
        await self._wait_below(self._size)

    async def wait_all(self) -> None:
        """Wait until no request is in progress.

        Raises:
            BaseException: The error that ended the run.
        """
        await self._wait_below(1)

    async def _wait_below(self, number: int) -> None:
        while self.error is None and len(self.running) >= number:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error
