"""A task while a backend has it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Hashable, Mapping, Set
from contextvars import Context
from types import MappingProxyType
from typing import Any

from rhapsody.backends.core.accounts import Grant
from rhapsody.backends.core.attachment import Attachment
from rhapsody.backends.core.execution import Execution, Location
from rhapsody.backends.core.history import ErrorText, TaskHistory
from rhapsody.backends.protocol import (
    ATTEMPT_KEY,
    CONTEXT_KEY,
    KEEP_KEY,
    Attempt,
    Task,
    TaskStates,
    task_kind,
)
from rhapsody.errors import TaskTimeoutError, UnsupportedTaskError, as_exception, message_of
from rhapsody.resources import MAX_PRIORITY, Resources, is_priority
from rhapsody.suggest import did_you_mean
from rhapsody.validation import is_number

__all__ = ["Work", "failure_fields", "is_async", "refuse_resources", "refuse_unknown"]


NO_OUTPUT: Mapping[str, Any] = MappingProxyType({})
"""Shared by all tasks: a dict for each task would make the garbage collector run more often."""


class Work:
    """A task while a backend has it.

    Attributes:
        task: The owner's own mapping. Do not change it; `BaseBackend.report_done` adds results.
        uid: The task's uid, unique within the attachment.
        key: The task's identity within the backend: its uid, unless a task of another owner has it.
        kind: "function", "executable" or "prompt".
        work_dir: Directory for captured output, as set when the task was submitted.
        state: The state reported last; PENDING at first.
        place: The node or model server that runs the task; "" if unknown.
        submitted: When the backend received the task, by `time.monotonic`, in seconds.
        started: When the task began to run, likewise. None: it has not.
        attempt: The attempt, if its owner repeats the task after a failure.
        timeout_error: The limit that it exceeded. None: it has not.
        context: The context of the task's call. None: that of its submission.
        grant: The resources that the task has now.
        location: Where it runs. None: not known.
        output: Result fields of an interrupted executable: its output so far, and its exit code.
    """

    __slots__ = (
        "__dict__",
        "attachment",
        "context",
        "future",
        "grant",
        "key",
        "kind",
        "location",
        "place",
        "started",
        "state",
        "submitted",
        "task",
        "uid",
        "work_dir",
    )

    # Most tasks have none of these. Of the others they are in a dict, so that each task takes less
    # memory while many wait.
    attempt: Attempt | None = None
    interrupted = False
    may_keep = False
    output: Mapping[str, Any] = NO_OUTPUT
    peak_memory: int | None = None
    queue_timer: asyncio.TimerHandle | None = None
    timeout_error: TaskTimeoutError | None = None
    timer: asyncio.TimerHandle | None = None

    def __init__(
        self, task: Task, attachment: Attachment, work_dir: str, submitted: float | None = None
    ) -> None:
        self.task = task
        self.uid: str = task.get("uid") or ""
        self.kind = task_kind(task)
        self.context: Context | None = task.pop(CONTEXT_KEY, None)
        if task.pop(KEEP_KEY, False):
            self.may_keep = True
        attempt = task.pop(ATTEMPT_KEY, None)
        if attempt is not None:
            self.attempt = attempt
        self.attachment = attachment
        self.key: Hashable = self.uid
        self.work_dir = work_dir
        self.future: asyncio.Future[None] | None = None
        self.grant: Grant | None = None
        self.state = TaskStates.PENDING
        self.place = ""
        self.location: Location | None = None
        self.submitted = time.monotonic() if submitted is None else submitted
        self.started: float | None = None

    @property
    def history(self) -> TaskHistory:
        """The history that records the task."""
        return self.attachment.history

    def keep_output(self, fields: Mapping[str, Any]) -> None:
        """Keep result fields of an interrupted executable, for the report of its timeout."""
        self.output = {**self.output, **fields}

    def mark_running(self) -> None:
        """Set the state RUNNING and record the time."""
        self.state = TaskStates.RUNNING
        self.started = time.monotonic()
        self.attachment.history.count_started()

    def mark_ended(
        self, state: str, error: BaseException | None, text: ErrorText | None = None
    ) -> None:
        """Set a terminal state and record it, with the exception of a failed task and its text."""
        self.attachment.history.record_end(self, state, error, text)
        self.state = state

    def execution(self) -> Execution:
        """Return when and where the task was executed; it ends now."""
        attempts = 1 if self.attempt is None else self.attempt.number
        return Execution.ending_now(
            self.submitted, self.started, self.location, attempts, self.peak_memory
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """The task's `task_backend_specific_kwargs`."""
        return self.task.get("task_backend_specific_kwargs") or {}

    @property
    def timeout(self) -> float | None:
        """The task's time limit in seconds, from its options or from its field `timeout`."""
        return self._seconds("timeout", self.options.get("timeout", self.task.get("timeout")))

    @property
    def queue_timeout(self) -> float | None:
        """The longest time in seconds until the task starts, from its field `queue_timeout`."""
        return self._seconds("queue_timeout", self.task.get("queue_timeout"))

    def _seconds(self, field: str, limit: Any) -> float | None:
        if limit is None:
            return None
        if not is_number(limit) or not limit > 0:
            raise UnsupportedTaskError(
                self.uid, f"'{field}' must be a positive number of seconds, got {limit!r}"
            )
        return float(limit)

    @property
    def priority(self) -> int:
        """The task's priority, from its field `priority`."""
        priority = self.task.get("priority")
        if not priority:
            return 0
        if not is_priority(priority):
            raise UnsupportedTaskError(
                self.uid,
                f"'priority' must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}, "
                f"got {priority!r}",
            )
        return int(priority)

    @property
    def resources(self) -> Resources | None:
        """What the task asks for, from its field `resources`; None if it asks for nothing."""
        given = self.task.get("resources")
        if given is None:
            return None
        try:
            return Resources.of(given)
        except ValueError as error:
            raise UnsupportedTaskError(self.uid, str(error)) from None

    def stop_timers(self) -> None:
        """Stop the timers of both limits, on the service loop."""
        for timer in (self.timer, self.queue_timer):
            if timer is not None:
                timer.cancel()


def failure_fields(work: Work, error: BaseException) -> dict[str, Any]:
    """Return the result fields of a failed task."""
    exception = as_exception(error, work.uid)
    return {"exception": exception, "stderr": message_of(exception)}


def is_async(function: Any) -> bool:
    """Return whether calls of a function, or of an object with `__call__`, are awaited."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = getattr(function, "__call__", function)  # noqa: B004
    return inspect.iscoroutinefunction(function)


def refuse_unknown(work: Work, known: Set[str], backend_name: str) -> None:
    """Refuse a task with an option that its backend does not know.

    Raises:
        UnsupportedTaskError: The message names the unknown options, the known one nearest to the
            first of them, and all known ones.
    """
    options = work.options
    if options and (unknown := sorted(options.keys() - known)):
        hint = next(filter(None, (did_you_mean(str(name), known) for name in unknown)), "")
        raise UnsupportedTaskError(
            work.uid,
            f"backend '{backend_name}' has no option {', '.join(map(repr, unknown))}; "
            + (f"{hint} It knows " if hint else "it knows ")
            + ", ".join(sorted(known)),
        )


def refuse_resources(work: Work, known: Set[str], backend_name: str) -> None:
    """Refuse a task that asks for a resource that its backend does not manage.

    Raises:
        UnsupportedTaskError: The message names the resources, and those that the backend manages.
    """
    resources = work.resources
    unknown = sorted(resources.model_fields_set - known) if resources is not None else []
    if unknown:
        managed = f"it manages {', '.join(sorted(known))}" if known else "it manages none"
        raise UnsupportedTaskError(
            work.uid,
            f"backend '{backend_name}' does not manage the resource{'s' * (len(unknown) > 1)} "
            f"{', '.join(map(repr, unknown))}; {managed}",
        )
