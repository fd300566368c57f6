"""The base class of backends whose functions run in workers."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Generic, TypeVar

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.history import ErrorText
from rhapsody.backends.core.work import Work, is_async
from rhapsody.backends.protocol import FUNCTION, TaskStates
from rhapsody.backends.workers.manager import WorkerManager
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE
from rhapsody.errors import UnsupportedTaskError

__all__ = ["WorkerBackend", "check_retries", "mode_of"]

M = TypeVar("M", bound=WorkerManager)


class WorkerBackend(BaseBackend, Generic[M]):
    """Base class of backends whose functions run in workers.

    A subclass sets `_manager` while it runs, and gives tasks to its scheduler.
    """

    timeout_from_start = True
    reports_running = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._manager: M | None = None

    def get_statistics(self) -> dict[str, Any]:
        """Return the numbers of workers and tasks.

        Returns:
            `workers` (ready), `workers_starting`, `tasks_waiting` and `tasks_placed`; empty if the
            backend has no workers.
        """
        return self._manager.scheduler.statistics() if self._manager is not None else {}

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready, each on its own node."""
        return self._manager.scheduler.pids() if self._manager is not None else []

    def interrupt(self, work: Work) -> None:
        """Interrupt a task in a worker, or a task that waits for one."""
        if self._manager is None:
            super().interrupt(work)
            return
        work.future = asyncio.get_running_loop().create_future()
        if not self._cancel_in_workers(self._manager, work):
            work.future = None  # submitted during the start, and not dispatched yet
            super().interrupt(work)

    def _cancel_in_workers(self, manager: M, work: Work) -> bool:
        return manager.scheduler.cancel(work)

    def _report_end(
        self,
        work: Work,
        state: str,
        fields: dict[str, Any] | None = None,
        text: ErrorText | None = None,
    ) -> bool:
        if state != TaskStates.CANCELED:
            fields = {**(fields or {}), **self._captured_output(work)}
        reported = super()._report_end(work, state, fields, text)
        future = work.future
        if future is not None and not isinstance(future, asyncio.Task) and not future.done():
            future.set_result(None)
        return reported

    def _captured_output(self, work: Work) -> dict[str, str]:
        """Return the paths of a function's captured output; an executable reports them itself."""
        captured = self._manager is not None and work.task.get("capture_stdio")
        if not captured or work.kind != FUNCTION:
            return {}
        path = os.path.join(work.work_dir, work.uid)
        return {stream: f"{path}.{stream}" for stream in ("stdout", "stderr")}


def check_retries(work: Work) -> None:
    """Refuse a task whose option `retries` is not a number.

    Raises:
        UnsupportedTaskError: The message says what is allowed.
    """
    retries = work.options.get("retries") or 0
    if not isinstance(retries, int) or retries < 0:
        raise UnsupportedTaskError(
            work.uid, f"'retries' must be a whole number of at least 0, got {retries!r}"
        )


def mode_of(work: Work) -> str:
    """Return the mode that a task runs in: CONCURRENT for an async function."""
    if work.kind != FUNCTION:
        return EXCLUSIVE
    return CONCURRENT if is_async(work.task["function"]) else EXCLUSIVE
