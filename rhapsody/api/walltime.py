"""The end of a session's run before its walltime: which tasks finish, start or are held."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from rhapsody.api.agents import is_agent
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import JournalError, WalltimeReached
from rhapsody.journal import Journal
from rhapsody.walltime import find_end, signals
from rhapsody.walltime.guard import WalltimeGuard

__all__ = ["SessionWalltime"]


class Submission(Protocol):
    """The part of a submission that the guard uses.

    Attributes:
        task: The task.
        backend: The backend that has it or will have it.
        at_backend: Whether the backend has it.
    """

    task: Any
    backend: Any
    at_backend: bool

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done at the end of the task."""


class SessionWalltime(WalltimeGuard):
    """Ends a session's run in time.

    Args:
        walltime: Seconds from now, if the batch system does not say when the job ends.
        margin: Seconds before the end at which nothing new is started any more.
        active: The submissions that have not ended, by uid.
        waits: By uid, the uids of what each agent waits for.
        cancel: Asks a backend to cancel a task.
        on_end: Called with the error of what was not run.
        journal: The session's journal.

    Attributes:
        withdrawn: The uids of tasks that their backends were asked to give back.
    """

    def __init__(
        self,
        walltime: float | None,
        margin: float,
        active: Mapping[str, Submission],
        waits: Mapping[str, Collection[str]],
        cancel: Callable[[Any], Any],
        on_end: Callable[[WalltimeReached], None],
        journal: Journal | None,
    ) -> None:
        super().__init__(margin)
        self.withdrawn: set[str] = set()
        self._walltime = walltime
        self._began = time.monotonic()
        self._active = active
        self._waits = waits
        self._cancel = cancel
        self._on_end = on_end
        self._journal = journal
        self._finding: asyncio.Task[None] | None = None
        self._sent: dict[Submission, float] = {}
        """When prompts were handed over."""
        signals.add_owner(self, signal.SIGTERM, signal.SIGUSR1)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The session's loop; None: it has not been used yet."""
        return self._loop

    def on_signal(self, sig: signal.Signals) -> None:
        """Begin the end of the run; leave a second SIGTERM to the previous handler."""
        if not self.begin(f"of the signal {sig.name}") and sig == signal.SIGTERM:
            signals.remove_owner(self)
            os.kill(os.getpid(), sig)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find out when the job ends, and observe that on a loop from now on."""
        self._loop = loop
        if self._timer is not None:
            self._timer.cancel()
        loop.call_soon_threadsafe(self._start_finding)

    def _start_finding(self) -> None:
        assert self._loop is not None
        self._finding = self._loop.create_task(self._find_end())

    async def _find_end(self) -> None:
        left = self._walltime
        if left is not None:
            left -= time.monotonic() - self._began
        loop = asyncio.get_running_loop()
        self.start(loop, self._end or await loop.run_in_executor(None, find_end, left))

    def _withdraw(self) -> None:
        for submission in self._active.values():
            backend, task = submission.backend, submission.task
            if (
                submission.at_backend
                and getattr(backend, "reports_running", False)
                and task["state"] != TaskStates.RUNNING
            ):
                self.withdrawn.add(task["uid"])
                self._cancel(task)

    def _busy(self) -> list[asyncio.Future[Any]]:
        return [
            submission.ended
            for uid, submission in self._active.items()
            if self._runs(submission) and not self._is_stuck(uid, lambda it: not self._runs(it))
        ]

    def _runs(self, submission: Submission) -> bool:
        return submission.at_backend and submission.task["uid"] not in self.withdrawn

    def _is_idle(self) -> bool:
        held = self._held
        return all(
            submission in held or self._is_stuck(uid, held.__contains__)
            for uid, submission in self._active.items()
        )

    def _is_stuck(self, uid: str, is_held: Callable[[Submission], bool]) -> bool:
        """Return whether a task is an agent, and all that it waits for is held."""
        waits = [self._active.get(inner) for inner in self._waits.get(uid, ())]
        return bool(waits) and all(inner is not None and is_held(inner) for inner in waits)

    async def _end_run(self, error: WalltimeReached) -> None:
        if self._journal is not None:
            with contextlib.suppress(JournalError):  # the journal has logged it
                await self._journal.flush()
        self._on_end(error)

    def may_hand_over(self, submission: Submission) -> bool:
        """Return whether a task can end before the walltime; if not, it is held."""
        task = submission.task
        seconds = task.get("timeout")
        if task.get("prompt") is None:
            return self.may_start(submission, seconds, task["uid"])
        at_rate = self.token_rates.seconds(submission.backend.name, "", task)
        if at_rate is not None:
            seconds = min(at_rate, seconds or at_rate)
        if not self.may_start(submission, seconds, task["uid"]):
            return False
        if not is_agent(task):  # its responses are prompts of their own, perhaps from the journal
            self._sent[submission] = time.monotonic()
        return True

    def ended(self, item: Submission) -> None:
        """Say that a submission has ended, held or not."""
        began = self._sent.pop(item, None)
        if began is not None:
            task, took = item.task, time.monotonic() - began
            self.token_rates.note(item.backend.name, "", task, task.get("usage"), took)
        super().ended(item)

    def stop(self) -> None:
        """Stop the timers, and restore the environment and the signal handlers. Idempotent."""
        super().stop()
        if self._finding is not None:
            self._finding.cancel()
        signals.remove_owner(self)
