"""The base class of all backends: attachment, submission, delivery and cancellation.

A subclass needs only one coroutine, `execute`. It runs on the service loop, takes a `Work` and
returns the result fields of the task. If it raises, the task is FAILED; if it is cancelled, it must
stop the work. `BaseBackend` implements the rest of the protocol: one terminal state per task,
delivery on the owner's loop, many results per wake-up.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from rhapsody.backends.core.attachable import Attachable
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.execution import PEAK_MEMORY
from rhapsody.backends.core.history import STATES, ErrorText, TaskHistory, TaskRecord
from rhapsody.backends.core.html import as_html, state_cells
from rhapsody.backends.core.lifecycle import Lifecycle
from rhapsody.backends.core.renamed import RenamedMethods
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import Work, failure_fields, refuse_resources
from rhapsody.backends.protocol import COMPUTE_KINDS, PROMPT, TaskStates
from rhapsody.errors import (
    QueueTimeoutError,
    TaskCancelledError,
    TaskTimeoutError,
    UnsupportedTaskError,
    has_own_text,
)
from rhapsody.garbage import watch_tasks

__all__ = ["BaseBackend"]

OUTPUT = ("stdout", "stderr", "exit_code")
"""The result fields that an executable keeps if it reaches its timeout."""

STARTS_PER_PASS = 250
"""Tasks started in one pass of the service loop."""


class BaseBackend(Attachable, Lifecycle, RenamedMethods):
    """Base class of all backends.

    A backend starts with `await backend`, `async with backend` or `await backend.initialize()`, all
    of them idempotent, and otherwise with its first task.

    Args:
        name: Name of the backend, by which tasks are routed. None: the name of its class.

    Raises:
        ValueError: The name is not a non-empty string.
    """

    task_kinds: frozenset[str] = COMPUTE_KINDS
    """The kinds of task that the backend takes: "function", "executable", "prompt"."""

    resource_names: frozenset[str] = frozenset()
    """The resources that the backend manages; a task that asks for another one is refused."""

    timeout_from_start = False
    """Whether a timeout starts with `report_running`, and so excludes the time in a queue. If
    False, it starts when the backend receives the task."""

    reports_running = False
    """Whether the backend calls `report_running` for every function and executable. If False, the
    timeouts of Rhapsody's engine start when the backend receives the task, and `queue_timeout` is
    refused."""

    keeps_results = False
    """Whether the backend may report a `KeptResult` for a task that has `KEEP_KEY`."""

    prints_to = ""
    """Where the functions print to, for the page of a run; "" if the backend runs no functions."""

    carries_contexts = False
    """Whether functions run in the context of their call (`Work.context`), as in threads."""

    def __init__(self, name: str | None = None) -> None:
        Lifecycle.__init__(self, name)
        Attachable.__init__(self)
        self._works: dict[Hashable, Work] = {}
        self._reporting = threading.Lock()
        self._handovers: set[asyncio.Task[None]] = set()
        watch_tasks(self, BaseBackend.count_active)

    def _repr_html_(self) -> str:
        """Return the backend for a notebook: its state, and its tasks by state."""
        owner = self.attached_to[-1] if self.attached_to else None
        facts = {"name": self.name, "state": self.state(), "owner": owner}
        rows = [[state.lower() for state in STATES], state_cells(self.history.counts)]
        return as_html(type(self).__name__, facts, rows if self.history.counts else ())

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run one task on the service loop and return its result fields.

        Call `self.report_running(work)` when the task really starts. Raise an exception to fail the
        task. If cancelled, stop the work and then re-raise `CancelledError`.

        Args:
            work: The task.

        Returns:
            A dict with `return_value` for a function, and with at least `stdout` for other kinds.
            If it has an `exception`, the task is FAILED and keeps the other fields, such as the
            output of an executable.
        """
        raise NotImplementedError

    def check(self, work: Work) -> None:
        """Raise an exception to refuse a task. Called on the owner's loop, so it must be quick."""
        if not work.uid or not isinstance(work.uid, str):
            raise UnsupportedTaskError(
                work.uid, f"'uid' must be a non-empty string, got {work.uid!r}"
            )
        if work.kind is None:
            raise UnsupportedTaskError(
                work.uid, "it has none of 'function', 'executable' and 'prompt'; set one of them"
            )
        if work.kind not in self.task_kinds:
            raise UnsupportedTaskError(
                work.uid,
                f"backend '{self.name}' cannot run a {work.kind} task; it takes "
                f"{' and '.join(sorted(self.task_kinds))} tasks",
            )
        if not isinstance(work.options, Mapping):
            raise UnsupportedTaskError(
                work.uid, f"'task_backend_specific_kwargs' must be a dict, got {work.options!r}"
            )
        work.timeout, work.priority  # noqa: B018 - raises if one of them is invalid
        if work.task.get("resources") is not None:
            refuse_resources(work, self.resource_names, self.name)
        if work.queue_timeout is not None and (work.kind == PROMPT or not self.reports_running):
            raise UnsupportedTaskError(
                work.uid,
                f"backend '{self.name}' does not report when a {work.kind} task starts, so "
                "'queue_timeout' cannot limit its wait; use 'timeout'",
            )

    def dispatch(self, works: Sequence[Work]) -> None:
        """Start tasks, on the service loop; at most `STARTS_PER_PASS` in one pass of it."""
        if rest := works[STARTS_PER_PASS:]:
            asyncio.get_running_loop().call_soon(self.dispatch, rest)
        for work in works[:STARTS_PER_PASS]:
            if self.is_active(work):  # not cancelled meanwhile
                self.begin(work)

    def begin(self, work: Work) -> None:
        """Start one task, on the service loop, and return at once.

        By default this runs `execute` in a new asyncio task.
        """
        work.future = asyncio.get_running_loop().create_task(self._drive(work))

    def interrupt(self, work: Work) -> None:
        """Stop a task that `begin` or `dispatch` has started.

        Called at most once for each task, on the service loop.
        """
        if work.future is None:
            self.report_cancelled(work)
        else:
            # After its first step: a coroutine cancelled before that never runs.
            asyncio.get_running_loop().call_soon(work.future.cancel)

    def count_active(self) -> int:
        """Return the number of tasks whose end has not been reported yet."""
        return len(self._works)

    def _add(self, work: Work) -> bool:
        """Count a task as active, unless its owner has an active one of the same uid; thread-safe.

        Its key is its uid, unless a task of another owner has that: AsyncFlow's uids restart with
        every engine. A tuple for each task would take more memory.
        """
        key = (id(work.attachment), work.uid)
        if key in self._works:
            return False
        other = self._works.setdefault(work.uid, work)
        if other is work or other.attachment is work.attachment:
            return other is work
        work.key = key
        return self._works.setdefault(key, work) is work

    def _find(self, uid: str) -> Work | None:
        """Return an active task of the current owner."""
        attachment = self._attachment
        work = self._works.get((id(attachment), uid)) or self._works.get(uid)
        return work if work is not None and work.attachment is attachment else None

    def is_active(self, work: Work) -> bool:
        """Return whether the end of a task has not been reported yet."""
        return self._works.get(work.key) is work  # a later task may have the same uid

    def report_running(self, work: Work, place: str = "") -> None:
        """Report that a task has started; thread-safe.

        Args:
            work: The task.
            place: The node or model server that runs it, if known.
        """
        work.place = place
        with self._reporting:  # another thread may report the end at the same time
            if self.is_active(work) and work.state == TaskStates.PENDING:
                work.mark_running()
                work.attachment.post(work.task, {}, work.state)
        if work.queue_timer is not None:
            service_loop().call(work.queue_timer.cancel)
        if self.timeout_from_start and work.timeout is not None:
            service_loop().call(self._start_timer, work)

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        """Report a task's result; thread-safe.

        Args:
            work: The task.
            fields: Result fields, added to the task on the owner's loop. If they have an
                `exception`, the task is FAILED and keeps the other fields. If the task's time limit
                was reached before, it is FAILED for that reason, and keeps its output.

        Returns:
            False if the task's end was reported before; then this report is dropped.
        """
        if work.timeout_error is not None:  # it went on to its end after the interruption
            work.keep_output({name: fields[name] for name in OUTPUT if name in fields})
            return self.report_cancelled(work)
        error = fields.get("exception")
        if error is None:
            return self._report_end(work, TaskStates.DONE, fields)
        return self._report_error(work, error, lambda: fields)

    def report_failed(self, work: Work, error: BaseException) -> bool:
        """Report a task FAILED with an exception; returns as `report_done` does."""
        return self._report_error(work, error, lambda: failure_fields(work, error))

    def _report_error(
        self, work: Work, error: BaseException, fields: Callable[[], dict[str, Any]]
    ) -> bool:
        """Report a task FAILED; make the text of the user's own exceptions in another thread."""

        def texts() -> tuple[dict[str, Any], ErrorText]:
            found = fields()
            return found, ErrorText.of(found["exception"])  # `_report_end` holds a lock

        if not (has_own_text(error) and service_loop().is_current):
            return self._report_end(work, TaskStates.FAILED, *texts())
        made = asyncio.get_running_loop().run_in_executor(None, texts)
        made.add_done_callback(
            lambda made: self._report_end(work, TaskStates.FAILED, *made.result())
        )
        return self.is_active(work)

    def report_cancelled(self, work: Work) -> bool:
        """Report that a task was interrupted: CANCELED, or FAILED if its time limit was reached.

        Returns as `report_done` does.
        """
        if work.timeout_error is not None:
            fields = {**failure_fields(work, work.timeout_error), **work.output}
            return self._report_end(work, TaskStates.FAILED, fields)
        return self._report_end(work, TaskStates.CANCELED)

    def report_cancelled_in_pause(self, task: Hashable) -> None:
        """Count a task as CANCELED that its owner cancelled before the next attempt; thread-safe.

        Args:
            task: Identifies the task; see `Attempt`.
        """
        with self._reporting:
            self._history.record_cancelled_pause(task)

    def _report_end(
        self,
        work: Work,
        state: str,
        fields: dict[str, Any] | None = None,
        text: ErrorText | None = None,
    ) -> bool:
        with self._reporting:
            if not self.is_active(work):
                return False
            del self._works[work.key]
            work.mark_ended(state, fields.get("exception") if fields else None, text)
            fields = dict(fields or {})
            if (peak := fields.pop(PEAK_MEMORY, None)) is not None:
                work.peak_memory = peak
            fields["execution"] = work.execution()
            work.attachment.post(work.task, fields, state)
        if work.timer is not None or work.queue_timer is not None:
            service_loop().call(work.stop_timers)
        return True

    async def _drive(self, work: Work) -> None:
        if work.timeout is not None and not self.timeout_from_start:
            self._start_timer(work)
        try:
            fields = await self.execute(work)
            if not isinstance(fields, dict):
                raise TypeError(
                    f"{type(self).__name__}.execute must return a dict of result fields, such as "
                    f"{{'return_value': 3}}, got {fields!r}"
                )
        except asyncio.CancelledError:
            self.report_cancelled(work)
        except BaseException as error:
            self.report_failed(work, error)
        else:
            self.report_done(work, fields)

    def _start_timer(self, work: Work) -> None:
        if work.timer is None and work.timeout is not None:
            loop = asyncio.get_running_loop()
            error = TaskTimeoutError(work.uid, work.timeout)
            work.timer = loop.call_later(work.timeout, self._expire, work, error)
            if not self.is_active(work):  # another thread has reported its end
                work.timer.cancel()

    def _start_queue_timer(self, works: Sequence[Work]) -> None:
        loop = asyncio.get_running_loop()
        for work in works:
            limit = work.queue_timeout
            if limit is not None and self.is_active(work) and work.started is None:
                left = work.submitted + limit - time.monotonic()
                work.queue_timer = loop.call_later(left, self._expire_in_queue, work)

    def _expire_in_queue(self, work: Work) -> None:
        if work.started is None:
            self._expire(work, QueueTimeoutError(work.uid, work.queue_timeout or 0.0))

    def _expire(self, work: Work, error: TaskTimeoutError) -> None:
        if not work.interrupted:
            work.timeout_error = error
            self._interrupt_once(work)

    def _interrupt_once(self, work: Work) -> None:
        # A second cancellation would interrupt the clean-up that the first one started.
        if self.is_active(work) and not work.interrupted:
            work.interrupted = True
            self.interrupt(work)

    def _cancel_tasks_of(self, attachment: Attachment) -> None:
        """Cancel the tasks of an attachment; once it is closed, they are not reported."""
        if works := [work for work in list(self._works.values()) if work.attachment is attachment]:
            service_loop().call(self._interrupt_all, works)

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the active tasks that a history counts."""
        return history.active(list(self._works.values()))

    async def submit_tasks(self, tasks: Sequence[Any]) -> None:
        """Accept tasks; see `rhapsody.backends.protocol.Backend.submit_tasks`."""
        attachment = self._attachment
        if attachment is None:
            attachment = self._attachment = Attachment(ignore, self._history)
        attachment.bind(asyncio.get_running_loop())
        attachment.detached = False
        works = []
        with self._reporting:
            attachment.history.count_submitted(len(tasks))
        now = time.monotonic()
        for task in tasks:
            work = Work(task, attachment, self._work_dir, now)
            if work.attempt is not None:
                with self._reporting:
                    attachment.history.take_back(work.attempt)
            try:
                self.check(work)
                if not self._add(work):
                    raise UnsupportedTaskError(work.uid, "another active task has the same uid")
            except Exception as error:
                with self._reporting:
                    work.mark_ended(TaskStates.FAILED, error)
                attachment.post(task, failure_fields(work, error), TaskStates.FAILED)
            else:
                works.append(work)
        if works:
            if limited := [work for work in works if work.task.get("queue_timeout") is not None]:
                service_loop().call(self._start_queue_timer, limited)
            self.hand_over(works)

    def hand_over(self, works: list[Work]) -> None:
        """Pass checked tasks to the service loop. Called on the owner's loop."""
        service_loop().call(self._receive, works)

    def _receive(self, works: list[Work]) -> None:
        if self.is_up:
            self.dispatch(works)
            return
        handover = asyncio.get_running_loop().create_task(self._start_then_dispatch(works))
        self._handovers.add(handover)
        handover.add_done_callback(self._handovers.discard)

    async def _start_then_dispatch(self, works: list[Work]) -> None:
        try:
            await self._ensure_started()
        except asyncio.CancelledError:
            for work in works:
                self._report_end(work, TaskStates.CANCELED)
            raise
        except Exception as error:
            for work in works:
                self.report_failed(work, error)
        else:
            self.dispatch(works)

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Run one task and return its result fields to the caller, not to the owner.

        Workflows run their AI tasks by this method. Cancelling the call stops the task.

        Args:
            task: An AITask, or any mapping that describes a task. It is not changed.

        Returns:
            The result fields, such as `response` or `return_value`.

        Raises:
            UnsupportedTaskError: The backend cannot run the task.
            TaskCancelledError: The backend was shut down.
            Exception: The exception that the task failed with.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attachment = Attachment(functools.partial(_settle, ended), self._history)
        described = {"uid": "task", **task}
        work = Work(dict(described), attachment, self._work_dir)
        self.check(work)
        with self._reporting:
            self._history.count_submitted(1)
            if work.attempt is not None:
                self._history.take_back(work.attempt)
        self._add(work)
        self.hand_over([work])
        try:
            await ended
        except asyncio.CancelledError:
            attachment.close()
            service_loop().call(self._interrupt_once, work)
            raise
        added = work.task.items()
        return {k: v for k, v in added if k not in described or described[k] is not v}

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task and report it CANCELED.

        Args:
            uid: The uid of a task that the current owner submitted.

        Returns:
            True if the task was cancelled; False if it is unknown or ended in another state.
        """
        work = self._find(uid)
        return work is not None and await service_loop().run(self._cancel(work))

    async def time_out_task(self, uid: str, error: TaskTimeoutError) -> bool:
        """Stop a task and report it FAILED: it exceeded a limit that its owner keeps.

        Args:
            uid: The uid of a task that the current owner submitted.
            error: The reason for its failure.

        Returns:
            True if the task was stopped; False if it is unknown, or ended or was cancelled before.
        """
        work = self._find(uid)
        return work is not None and await service_loop().run(self._cancel(work, error))

    async def _cancel(self, work: Work, error: TaskTimeoutError | None = None) -> bool:
        if not self.is_active(work):
            return False
        if error is not None:
            self._expire(work, error)
        else:
            self._interrupt_once(work)
        if work.future is not None:
            await asyncio.wait([work.future])
        return work.state == (TaskStates.CANCELED if error is None else TaskStates.FAILED)

    def _interrupt_all(self, works: Sequence[Work]) -> None:
        for work in works:
            self._interrupt_once(work)

    async def shutdown(self) -> None:
        """Cancel all tasks and release all resources. Idempotent; never raises.

        Active tasks are reported CANCELED. The backend starts again when it is used again. In a
        forked child it does nothing: the backend is that of the parent.
        """
        if self._is_of_the_parent:
            return
        attachment = self._attachment
        await super().shutdown()
        if attachment is not None:
            await attachment.delivered()

    async def shutdown_on_service_loop(self) -> None:
        """Shut down, on the service loop; concurrent calls wait for the same shutdown."""
        # Tasks that wait for a start, including those submitted since a shutdown began.
        for handover in tuple(self._handovers):
            asyncio.get_running_loop().call_soon(handover.cancel)  # see `interrupt`
        await super().shutdown_on_service_loop()

    def cancel_all(self) -> list[asyncio.Future[Any]]:
        """Interrupt all tasks and return futures that are done when the tasks have ended."""
        works = list(self._works.values())
        self._interrupt_all(works)
        return [work.future for work in works if work.future is not None]

    async def _shut_down_once(self) -> None:
        attachment = self._attachment
        await super()._shut_down_once()
        if attachment is not None:
            attachment.detached = True


def _settle(ended: asyncio.Future[None], task: Mapping[str, Any], state: str) -> None:
    if ended.done() or state not in TaskStates.terminal_states:
        return
    if state == TaskStates.DONE:
        ended.set_result(None)
    elif state == TaskStates.FAILED:
        ended.set_exception(task["exception"])
    else:
        ended.set_exception(TaskCancelledError(task["uid"]))
