"""Pacing: long work on an event loop in small parts, so that no pass of the loop takes long."""

from __future__ import annotations

import asyncio

__all__ = ["Pace"]

UNITS_PER_PASS = 64
"""A unit is the start, the outcome or the cancellation of one prompt: 30 to 60 microseconds."""


class Pace:
    """Bounds the work that coroutines do together in one pass of the loop.

    It counts units of work and not time, since most work of a unit is done in the next pass: an
    outcome that is set wakes the task that waits for it.

    Args:
        units: Units of work in one pass.
    """

    def __init__(self, units: int = UNITS_PER_PASS) -> None:
        self._units = units
        self._left = units
        self._counting = False

    async def take(self, units: int = 1) -> None:
        """Wait for a pass that has room, and use it. A part larger than a pass gets its own.

        Args:
            units: Units of the work that follows.
        """
        while self._left < min(units, self._units):  # noqa: ASYNC110 - the next pass has room
            await asyncio.sleep(0)
        self._left -= units
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._begin_pass)

    def _begin_pass(self) -> None:
        self._counting = False
        self._left = self._units
