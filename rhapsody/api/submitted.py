"""A submitted task, and those who wait for its end."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from rhapsody.api.errors import TaskCancelledError, TaskExecutionError
from rhapsody.api.tasks import BaseTask
from rhapsody.backends.protocol import TaskStates

__all__ = ["AnyTask", "Submitted"]

AnyTask = MutableMapping[str, Any]


class Submitted:
    """A task from its submission to its end: where it runs, and who waits for it.

    Args:
        task: The task.
        backend: Where it runs.
        future: Of the task, for those who await it.
    """

    __slots__ = ("backend", "ended", "future", "task")

    def __init__(self, task: AnyTask, backend: Any, future: asyncio.Future[Any]) -> None:
        self.task = task
        self.backend = backend
        self.future = future
        self.ended: asyncio.Future[None] = future.get_loop().create_future()
        """Done at its end, well or not."""

    def settle(self, state: str) -> None:
        """Tell those who wait that it has ended; from any thread.

        Args:
            state: DONE, FAILED or CANCELED.
        """
        task, future = self.task, self.future
        loop = future.get_loop()
        if not _runs_here(loop) and not loop.is_closed():
            # `with` left where a loop runs, or a third party's backend that reports from a thread.
            loop.call_soon_threadsafe(self.settle, state)
            return
        if not self.ended.done():
            self.ended.set_result(None)
        if future.done():  # cancelled by whoever awaited the future itself
            future = loop.create_future()
            if isinstance(task, BaseTask):
                task.bind_future(future)
        if state == TaskStates.DONE:
            future.set_result(task)
            return
        if state == TaskStates.CANCELED:
            error: Any = TaskCancelledError(task["uid"])
            task.setdefault("exception", error)
        else:
            error = task.get("exception")
            if error is None:
                error = TaskExecutionError(
                    task["uid"], task.get("stderr") or "no reason was given", task.get("exit_code")
                )
        future.set_exception(error)
        future.exception()  # retrieved: those who use wait_tasks get no warnings


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
