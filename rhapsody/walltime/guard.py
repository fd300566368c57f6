"""The end of a run before its walltime: what runs may finish, and nothing new is started."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from rhapsody.errors import WalltimeReached
from rhapsody.walltime.end import END_VARIABLE, WalltimeEnd
from rhapsody.walltime.token_rates import TokenRates

__all__ = ["WalltimeGuard"]

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
"""How long nothing must run before a run ends because what is left cannot end in time: the program
may start other tasks meanwhile."""


class WalltimeGuard(ABC):
    """Ends the run of an engine or a session in time.

    Args:
        margin: Seconds before the end at which nothing new is started any more.

    Attributes:
        reached: The error of what was not run. None: the run continues.
        token_rates: Estimates how long prompts take.
    """

    def __init__(self, margin: float) -> None:
        self.reached: WalltimeReached | None = None
        self.token_rates = TokenRates()
        self._margin = margin
        self._end: WalltimeEnd | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: set[Any] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._check: asyncio.TimerHandle | None = None
        self._job: asyncio.Task[None] | None = None
        self._variable: str | None = None

    def start(self, loop: asyncio.AbstractEventLoop, end: WalltimeEnd | None) -> None:
        """Observe the end of the walltime.

        Args:
            loop: The owner's loop, which runs.
            end: When the allocation ends; None: unknown, and only a signal ends the run.
        """
        self._loop = loop
        if end is None:
            return
        if self._end is None:
            self._variable = os.environ.get(END_VARIABLE)
            logger.info(
                "the walltime ends in %.0f s, according to %s; nothing new is started in its last "
                "%g s",
                end.at - time.time(),
                end.source,
                self._margin,
            )
        self._end = end
        os.environ[END_VARIABLE] = f"{end.at:.3f}"
        delay = max(0.0, end.at - self._margin - time.time())
        self._timer = loop.call_later(delay, self.begin, "the walltime is nearly over")

    def begin(self, reason: str) -> bool:
        """Start nothing new, and end the run when nothing runs any more or the margin is over.

        Returns:
            False if that has begun already.
        """
        if self.reached is not None or self._loop is None:
            return False
        self.reached = WalltimeReached(reason)
        logger.warning("the run ends early, because %s; what runs may finish", reason)
        self._withdraw()
        self._job = self._loop.create_task(self._finish())
        return True

    async def _finish(self) -> None:
        assert self._loop is not None
        seconds = self._margin
        if self._end is not None:
            seconds = min(seconds, max(0.0, self._end.at - time.time()))
        # What ends the program, commits the last results and removes folders has a tenth of it.
        deadline = self._loop.time() + 0.9 * seconds
        while busy := self._busy():
            left = deadline - self._loop.time()
            if left <= 0:
                break
            await asyncio.wait(busy, timeout=left)
        assert self.reached is not None
        await self._end_run(self.reached)

    @abstractmethod
    def _withdraw(self) -> None:
        """Take back what the backends have not started."""

    @abstractmethod
    def _busy(self) -> Collection[asyncio.Future[Any]]:
        """Return futures that are done when what runs has ended."""

    @abstractmethod
    def _is_idle(self) -> bool:
        """Return whether nothing runs, and nothing that is not held can start."""

    @abstractmethod
    async def _end_run(self, error: WalltimeReached) -> None:
        """End what is left with an error."""

    def may_start(self, item: Any, seconds: float | None, name: str) -> bool:
        """Return whether something may start now; if not, it is held until the run ends.

        Args:
            item: A component or a submission.
            seconds: How long it may take; None: unknown.
            name: Its name, for the log.
        """
        if self.reached is not None:
            return False
        if self._end is None or seconds is None or time.time() + seconds <= self._end.at:
            return True
        if not self._held:
            logger.info("'%s' is not started, since it is expected to take %g s", name, seconds)
        self._held.add(item)
        self._check_later()
        return False

    def ended(self, item: Any) -> None:
        """Say that something has ended, held or not."""
        if self._held:
            self._held.discard(item)
            self._check_later()

    def _check_later(self) -> None:
        # Later: dependents, blocks and the program go on only in the next passes of the loop.
        if self._check is None and self._loop is not None and not self._loop.is_closed():
            self._check = self._loop.call_later(SETTLE_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._check = None
        if self._held and self._is_idle():
            self.begin("what is left cannot end before the walltime")

    def stop(self) -> None:
        """Stop the timers, and restore the environment. Idempotent."""
        for timer in (self._timer, self._check):
            if timer is not None:
                timer.cancel()
        if self._end is not None:
            self._end = None
            if self._variable is None:
                os.environ.pop(END_VARIABLE, None)
            else:
                os.environ[END_VARIABLE] = self._variable
