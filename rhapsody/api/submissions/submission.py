"""A submission: one task of a session, its future, and what is known of its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextvars import copy_context
from typing import Any

from rhapsody.api.tasks import BaseTask
from rhapsody.backends.core.nested_runs import has_helper
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import TaskCancelledError, TaskExecutionError, WalltimeReached

__all__ = ["AnyTask", "Submission"]

AnyTask = MutableMapping[str, Any]


class Submission:
    """One task, from its submission to its end.

    Args:
        task: The task.
        backend: The backend that gets it.
        future: Its result is the task; `await task` waits for it.

    Attributes:
        at_backend: Whether the backend has the current attempt.
        failed: The number of attempts that failed.
        pause: The timer of the next attempt. None: no attempt failed.
        context: The context of later attempts, in which a thread waits for the task. None: no
            thread of a pool waits.
        is_settled: Whether the task has ended.
    """

    __slots__ = (
        "_ended",
        "at_backend",
        "backend",
        "context",
        "failed",
        "future",
        "is_settled",
        "pause",
        "task",
    )

    def __init__(self, task: AnyTask, backend: Any, future: asyncio.Future[Any]) -> None:
        self.task = task
        self.backend = backend
        self.future = future
        self.at_backend = False
        self.failed = 0
        self.pause: asyncio.TimerHandle | None = None
        self.context = copy_context() if has_helper() else None
        self.is_settled = False
        self._ended: asyncio.Future[None] | None = None

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done at the end of the task; it never has an exception."""
        if self._ended is None:  # most tasks need none
            self._ended = self.future.get_loop().create_future()
            if self.is_settled:
                self._ended.set_result(None)
        return self._ended

    def settle(self, state: str) -> None:
        """Complete both futures; may be called from any thread.

        Args:
            state: DONE, FAILED or CANCELED.
        """
        task, future = self.task, self.future
        loop = future.get_loop()
        if not _runs_here(loop) and not loop.is_closed():
            # `with Session(...)` was left on a running loop, or a backend reports from a thread.
            loop.call_soon_threadsafe(self.settle, state)
            return
        self.is_settled = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if future.done():  # the user cancelled the future itself
            future = loop.create_future()
            if isinstance(task, BaseTask):
                task.bind_future(future)
        if state == TaskStates.DONE:
            future.set_result(task)
            if isinstance(task, BaseTask):
                task.drop_future()
            return
        if state == TaskStates.CANCELED:
            given = task.get("exception")
            error: Any = given if isinstance(given, WalltimeReached) else None
            if error is None:
                error = TaskCancelledError(task["uid"])
                task.setdefault("exception", error)
        else:
            error = task.get("exception")
            if error is None:
                error = TaskExecutionError(
                    task["uid"], task.get("stderr") or "no reason was given", task.get("exit_code")
                )
                task["exception"] = error
        future.set_exception(error)
        future.exception()  # mark it as retrieved: users of wait_tasks() get no warnings


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
