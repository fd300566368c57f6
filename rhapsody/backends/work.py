"""One task while a backend has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Set
from typing import Any

from rhapsody.api.errors import TaskExecutionError, UnsupportedTaskError, message_of
from rhapsody.backends.attachment import Attachment
from rhapsody.backends.protocol import Task, TaskStates, task_kind

__all__ = ["Work", "failure_fields", "refuse_unknown", "task_exception"]


class Work:
    """One task while a backend has it.

    Attributes:
        task: The owner's own mapping. Read it; results go through `BaseBackend.finish`.
        uid: The task's uid, unique within the attachment.
        key: Identity within a backend: stock uids start again with every attachment.
        kind: "function", "executable" or "prompt".
        work_dir: Directory for captured output, as it was when the task came.
        state: The state that was reported last; PENDING before any.
        place: Where it runs, if that is known: a node, a model server. Else "".
        submitted: When the backend got it, by `time.monotonic`, in seconds.
        started: When it began to run, likewise; None before.
    """

    __slots__ = (
        "attachment",
        "ending",
        "expired",
        "job",
        "key",
        "kind",
        "place",
        "started",
        "state",
        "submitted",
        "task",
        "timer",
        "uid",
        "work_dir",
    )

    def __init__(self, task: Task, attachment: Attachment, work_dir: str) -> None:
        self.task = task
        self.uid: str = task.get("uid") or ""
        self.kind = task_kind(task)
        self.attachment = attachment
        self.key = (id(attachment), self.uid)
        self.work_dir = work_dir
        self.job: asyncio.Future[None] | None = None
        self.ending = False
        self.expired = False
        self.state = TaskStates.PENDING
        self.place = ""
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Note that it runs now."""
        self.state = TaskStates.RUNNING
        self.started = time.monotonic()
        self.attachment.history.started()

    def end(self, state: str, error: BaseException | None) -> None:
        """Note that it has ended in a state, and what it failed with."""
        self.attachment.history.ended(self, state, error)
        self.state = state

    @property
    def options(self) -> Mapping[str, Any]:
        """The task's `task_backend_specific_kwargs`."""
        return self.task.get("task_backend_specific_kwargs") or {}

    @property
    def timeout(self) -> float | None:
        """Seconds this task may take, from its options or from its own `timeout` field."""
        limit = self.options.get("timeout", self.task.get("timeout"))
        if limit is None:
            return None
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
            raise UnsupportedTaskError(
                self.uid, f"'timeout' must be a positive number of seconds, not {limit!r}"
            )
        return float(limit)


def task_exception(uid: str, error: BaseException) -> Exception:
    """Make an exception that a future can hold and an owner can raise.

    `StopIteration` hangs a future and `SystemExit`, `KeyboardInterrupt` and `CancelledError` would
    end the owner's loop; they are wrapped, with the original as the cause.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = TaskExecutionError(uid, f"it raised {type(error).__name__}: {message_of(error)}")
    wrapped.__cause__ = error
    return wrapped


def failure_fields(work: Work, error: BaseException) -> dict[str, Any]:
    """Return the result fields of a task that failed."""
    exception = task_exception(work.uid, error)
    return {"exception": exception, "stderr": message_of(exception)}


def refuse_unknown(work: Work, known: Set[str], backend_name: str) -> None:
    """Refuse a task that has an option which its backend does not know.

    Raises:
        UnsupportedTaskError: It has one; the message names it, and those there are.
    """
    if unknown := work.options.keys() - known:
        raise UnsupportedTaskError(
            work.uid,
            f"backend '{backend_name}' has no option {', '.join(map(repr, sorted(unknown)))}; "
            f"it knows {', '.join(sorted(known))}",
        )
