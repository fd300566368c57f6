"""The tasks of one owner at one backend, for the page and the live view."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.history import TaskHistory, TaskRecord
from rhapsody.backends.core.work import Work
from rhapsody.backends.protocol import Attempt, Task, TaskStates

__all__ = ["BackendRun", "OwnerHistory", "keeps_history", "runs_of"]


class HistorySource(Protocol):
    """An object that keeps the history of an owner's tasks: a backend, or an `OwnerHistory`."""

    @property
    def history(self) -> TaskHistory:
        """The tasks of the owner."""

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the tasks that have not ended."""


class BackendRun:
    """The tasks of one owner at one backend.

    Args:
        backend: The backend, attached to the owner.
        source: Keeps the history of the tasks; None: the backend itself.
    """

    def __init__(self, backend: Any, source: HistorySource | None = None) -> None:
        self.name: str = backend.name
        self._backend = backend
        self._source: HistorySource = source or backend
        self.history = self._source.history

    def records(self, latest: int | None = None) -> list[TaskRecord]:
        """Return records of the tasks that ended last, and of all that have not ended.

        Args:
            latest: Maximum number of tasks that ended. None: all whose records are kept.
        """
        return list(map(TaskRecord._make, zip(*self.columns(latest), strict=True)))

    def columns(self, latest: int | None = None) -> list[list[Any]]:
        """Return the same as `records`, as one list for each field of a record."""
        active = self._source.active_records(self.history)
        columns = self.history.columns(latest)
        if active:
            uids, _, _, _, submitted, *_ = columns
            ended_meanwhile = set(zip(uids, submitted, strict=True))
            left = [r for r in active if (r.uid, r.submitted) not in ended_meanwhile]
            for column, values in zip(columns, zip(*left, strict=True), strict=False):
                column += values
        return columns

    def active_names(self) -> list[tuple[str, str]]:
        """Return name and state of each task that has not ended."""
        return [(r.name, r.state) for r in self._source.active_records(self.history)]

    def logs(self) -> dict[str, str]:
        """Return the last lines of the logs of model servers or workers, by their names."""
        own = getattr(self._backend, "server_logs", None)
        return own() if own is not None else {}

    def prints_to(self) -> str:
        """Return where the functions of the backend print to, or "" if that is not known."""
        return str(getattr(self._backend, "prints_to", ""))

    def statistics(self) -> dict[str, Any]:
        """Return the statistics of the backend, empty if it has none."""
        own = getattr(self._backend, "get_statistics", None)
        return own() if own is not None else {}


def keeps_history(backend: Any) -> bool:
    """Return whether a backend keeps the history of its tasks.

    A subclass of `BaseBackend` with its own `submit_tasks`, such as a backend for `rhapsody-py`,
    may bypass the history.
    """
    return getattr(type(backend), "submit_tasks", None) is BaseBackend.submit_tasks


def runs_of(backends: Iterable[Any]) -> list[BackendRun]:
    """Return the runs of those backends that keep a history; other packages' backends may not."""
    return [BackendRun(backend) for backend in backends if hasattr(backend, "active_records")]


class RecalledTasks:
    """The history of tasks whose results were taken from a journal.

    Args:
        journal: The journal; its statistics are those of the backend "journal".
    """

    name = "journal"

    def __init__(self, journal: Any) -> None:
        self.history = TaskHistory()
        self._journal = journal

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return nothing: a recalled task ends at once."""
        return []

    def get_statistics(self) -> dict[str, Any]:
        """Return the statistics of the journal."""
        statistics: dict[str, Any] = self._journal.get_statistics()
        return statistics

    def add(self, uid: str, kind: str | None, task: Task) -> None:
        """Record a task that ended with a recalled result."""
        self.history.count_submitted(1)
        self.history.record_end(_Recalled(uid, kind, task), TaskStates.DONE, None)


class _Recalled:
    """A recalled task as its history reads it."""

    __slots__ = ("kind", "submitted", "task", "uid")
    place = "journal"
    state = TaskStates.PENDING
    started: float | None = None
    attempt: Attempt | None = None

    def __init__(self, uid: str, kind: str | None, task: Task) -> None:
        self.uid = uid
        self.kind = kind
        self.task = task
        self.submitted = time.monotonic()

    history: TaskHistory


class OwnerHistory:
    """The history that an owner keeps for a backend without one."""

    def __init__(self) -> None:
        self._attachment = Attachment(ignore)
        self._works: dict[str, Work] = {}

    @property
    def history(self) -> TaskHistory:
        """The owner's tasks."""
        return self._attachment.history

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the tasks that have not ended."""
        return history.active(list(self._works.values()))

    def submitted(self, task: Task) -> None:
        """Record a task before it is submitted to the backend."""
        work = self._works[task["uid"]] = Work(task, self._attachment, "")
        self.history.count_submitted(1)
        if work.attempt is not None:
            self.history.take_back(work.attempt)

    def report_cancelled_in_pause(self, task: Hashable) -> None:
        """Count a task as CANCELED that was cancelled before its next attempt."""
        self.history.record_cancelled_pause(task)

    def on_state(self, task: Task, state: str) -> None:
        """Record a state that the backend reported."""
        work = self._works.get(task["uid"])
        if work is None:  # cancelled before it was submitted to the backend
            return
        if state == TaskStates.RUNNING:
            if work.state == TaskStates.PENDING:
                work.mark_running()
        elif state in TaskStates.terminal_states:
            del self._works[task["uid"]]
            work.mark_ended(state, task.get("exception"))
            task["execution"] = work.execution()
