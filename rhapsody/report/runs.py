"""One backend's part in a run, as the page and the live view read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from rhapsody.backends.attachment import Attachment, ignore
from rhapsody.backends.history import TaskHistory, TaskRecord
from rhapsody.backends.protocol import Task, TaskStates
from rhapsody.backends.work import Work

__all__ = ["BackendRun", "OwnersNotes", "runs_of"]


class Notes(Protocol):
    """Who knows what became of the tasks: a backend, or else its owner."""

    @property
    def history(self) -> TaskHistory:
        """The tasks of one owner."""

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the tasks in a history that have not ended."""


class BackendRun:
    """One backend's part in a run: what became of one owner's tasks.

    Args:
        backend: The backend, attached to the owner.
        notes: Who knows about the tasks; the backend itself where None.
    """

    def __init__(self, backend: Any, notes: Notes | None = None) -> None:
        self.name: str = backend.name
        self._backend = backend
        self._notes: Notes = notes or backend
        self.history = self._notes.history

    def records(self) -> list[TaskRecord]:
        """Return the records of the latest tasks that ended, and of all that have not."""
        active = self._notes.active_records(self.history)
        ended = self.history.records()
        ended_meanwhile = {(record.uid, record.submitted) for record in ended}
        return ended + [r for r in active if (r.uid, r.submitted) not in ended_meanwhile]

    def statistics(self) -> dict[str, Any]:
        """Return what the backend says of itself."""
        own = getattr(self._backend, "get_statistics", None)
        return own() if own is not None else {}


def runs_of(backends: Iterable[Any]) -> list[BackendRun]:
    """Return the runs of those backends that keep a history: all but some third parties'."""
    return [BackendRun(backend) for backend in backends if hasattr(backend, "active_records")]


class OwnersNotes:
    """What an owner notes of its tasks at a backend that keeps no history itself."""

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
        """Note a task that the backend is about to get."""
        self._works[task["uid"]] = Work(task, self._attachment, "")
        self.history.submitted(1)

    def on_state(self, task: Task, state: str) -> None:
        """Note a state that the backend reported."""
        if state == TaskStates.RUNNING:
            work = self._works[task["uid"]]
            if work.state == TaskStates.PENDING:
                work.start()
        elif state in TaskStates.terminal_states:
            self._works.pop(task["uid"]).end(state, task.get("exception"))
