"""What every backend shares: attachment, hand-over, delivery and cancelling.

A backend of one's own is a subclass with one coroutine, `execute`. It runs on the service loop,
takes a `Work` and returns the result fields of the task; raising makes the task FAILED, and being
cancelled means that the work is to be stopped. Everything the protocol asks for beyond that is
here: one terminal state per task, delivery on the owner's loop, many results per wake-up.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.api.errors import (
    BackendInUseError,
    TaskCancelledError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from rhapsody.backends.attachment import Attachment, ignore
from rhapsody.backends.history import TaskHistory, TaskRecord
from rhapsody.backends.lifecycle import Lifecycle
from rhapsody.backends.protocol import COMPUTE_KINDS, TaskCallback, TaskStates
from rhapsody.backends.service import service_loop
from rhapsody.backends.work import Work, failure_fields

__all__ = ["BaseBackend"]

logger = logging.getLogger(__name__)

STARTS_PER_PASS = 250
"""Tasks started before the service loop gets to do something else."""


class BaseBackend(Lifecycle):
    """Base class of all backends.

    Every backend starts by `await backend`, `async with backend` or `await backend.initialize()`,
    each of them as often as one likes, and by itself at the first task.

    Args:
        name: The name that tasks are routed by; the class's name where None.

    Raises:
        ValueError: The name is not a non-empty string.
    """

    task_kinds: frozenset[str] = COMPUTE_KINDS
    """The kinds of task it takes: "function", "executable", "prompt"."""

    timeout_from_start = False
    """Whether a task's timeout counts from `running`, so that waiting for a free place is not in
    it, or else from the moment in which the backend got the task."""

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._work_dir = os.getcwd()
        self.is_attached = False
        self.attached_to: list[str] = []
        self._attachment: Attachment | None = None
        self._history = TaskHistory()
        self._attached_as: tuple[str, int] = (self._work_dir, 0)
        self._works: dict[tuple[int, str], Work] = {}
        self._reporting = threading.Lock()
        self._handovers: set[asyncio.Task[None]] = set()

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run one task on the service loop and return its result fields.

        Call `self.running(work)` when it really starts. Raise to fail the task. On cancellation,
        stop the work before letting `CancelledError` out.

        Args:
            work: The task.

        Returns:
            A dict with `return_value` for a function, with at least `stdout` otherwise. With an
            `exception` among the fields the task is FAILED and keeps the others, such as the
            output of an executable.
        """
        raise NotImplementedError

    def check(self, work: Work) -> None:
        """Refuse a task before it is started, by raising; cheap, on the owner's loop."""
        if not work.uid or not isinstance(work.uid, str):
            raise UnsupportedTaskError(work.uid, "its 'uid' must be a non-empty string")
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
                work.uid, f"'task_backend_specific_kwargs' must be a dict, not {work.options!r}"
            )
        work.timeout  # noqa: B018 - reading it refuses a bad one before anything has started

    def dispatch(self, works: Sequence[Work]) -> None:
        """Start tasks on the service loop, some in each pass of it."""
        if rest := works[STARTS_PER_PASS:]:
            asyncio.get_running_loop().call_soon(self.dispatch, rest)
        for work in works[:STARTS_PER_PASS]:
            if self.is_active(work):  # else cancelled before its turn came
                self.begin(work)

    def begin(self, work: Work) -> None:
        """Start one task on the service loop, by `execute` in an asyncio task of its own."""
        work.job = asyncio.get_running_loop().create_task(self._drive(work))

    def interrupt(self, work: Work) -> None:
        """Stop what `begin` or `dispatch` has started; called once, on the service loop."""
        if work.job is None:
            self.stopped(work)
        else:
            # Behind the job's first step, since a coroutine cancelled before it never runs.
            asyncio.get_running_loop().call_soon(work.job.cancel)

    def is_active(self, work: Work) -> bool:
        """Say whether a task's end has not been reported yet."""
        return self._works.get(work.key) is work  # the uid may have been given out again

    def running(self, work: Work, place: str = "") -> None:
        """Report that a task has started; from any thread.

        Args:
            work: The task.
            place: Where it runs, if that is known: a node, a model server.
        """
        work.place = place
        with self._reporting:  # else its end, from another thread, could be told first
            if self.is_active(work) and work.state == TaskStates.PENDING:
                work.start()
                work.attachment.post(work.task, {}, work.state)
        if self.timeout_from_start and work.timeout is not None:
            service_loop().call(self._start_timer, work)

    def finish(self, work: Work, state: str, fields: dict[str, Any] | None = None) -> bool:
        """Report a task's end; from any thread.

        Args:
            work: The task.
            state: DONE, FAILED or CANCELED.
            fields: Result fields, added to the task on the owner's loop.

        Returns:
            False where the task has ended already, and then nothing is reported.
        """
        with self._reporting:
            if not self.is_active(work):
                return False
            del self._works[work.key]
            work.end(state, fields.get("exception") if fields else None)
            work.attachment.post(work.task, fields or {}, state)
        if work.timer is not None:
            service_loop().call(work.timer.cancel)
        return True

    def fail(self, work: Work, error: BaseException) -> bool:
        """Report a task FAILED with a real exception; from any thread."""
        return self.finish(work, TaskStates.FAILED, failure_fields(work, error))

    def stopped(self, work: Work) -> bool:
        """Report that a task was stopped, by its owner or by its timeout; from any thread."""
        if work.expired:
            return self.fail(work, TaskTimeoutError(work.uid, work.timeout or 0.0))
        return self.finish(work, TaskStates.CANCELED)

    async def _drive(self, work: Work) -> None:
        if work.timeout is not None and not self.timeout_from_start:
            self._start_timer(work)
        try:
            fields = await self.execute(work)
            if not isinstance(fields, dict):
                raise TypeError(
                    f"{type(self).__name__}.execute returned {fields!r}; it has to return a dict "
                    "of result fields, such as {'return_value': 3}"
                )
            failed = fields.get("exception") is not None
        except asyncio.CancelledError:
            self.stopped(work)
        except BaseException as error:
            self.fail(work, error)
        else:
            self.finish(work, TaskStates.FAILED if failed else TaskStates.DONE, fields)

    def _start_timer(self, work: Work) -> None:
        if work.timer is None and work.timeout is not None:
            loop = asyncio.get_running_loop()
            work.timer = loop.call_later(work.timeout, self._expire, work)
            if not self.is_active(work):  # its end, in another thread, may have come before this
                work.timer.cancel()

    def _expire(self, work: Work) -> None:
        if not work.ending:
            work.expired = True
            self._end(work)

    def _end(self, work: Work) -> None:
        # Once, since a second cancellation would break into the clean-up after the first.
        if self.is_active(work) and not work.ending:
            work.ending = True
            self.interrupt(work)

    def register_callback(self, func: TaskCallback) -> None:
        """Attach an owner: the object behind the callback, held weakly.

        The same owner, or a plain function after another one, replaces its own callback. What is
        left of an earlier, closed owner's work is cancelled, unreported.

        Args:
            func: Called as `func(task, state)` on the loop that runs now, or, where none does, on
                the loop that first submits.

        Raises:
            BackendInUseError: Another owner is still open; that one's attachment is unchanged.
        """
        present = self._attachment
        if present is not None:
            if present.is_same_owner(func):
                present.replace_callback(func)
                return
            owner = present.open_owner()
            if owner is not None:
                self._work_dir, owners = self._attached_as
                del self.attached_to[owners:]
                uid = getattr(owner, "uid", "")
                raise BackendInUseError(self.name, f"{type(owner).__name__} {uid}".strip())
            leftover = [w for w in list(self._works.values()) if w.attachment is present]
            present.silence()
            if leftover:
                service_loop().call(self._cancel_all, leftover)
        self._attachment = Attachment(func)
        self._history = self._attachment.history
        self._attached_as = (self._work_dir, len(self.attached_to))

    def release(self, owner: Any) -> None:
        """Let an owner go without shutting the backend down; another may attach then."""
        attachment = self._attachment
        if attachment is not None and attachment.owner is not None and attachment.owner() is owner:
            attachment.released = True

    @property
    def _callback_func(self) -> TaskCallback:
        callback = self._attachment.callback if self._attachment is not None else None
        return callback or ignore

    @_callback_func.setter
    def _callback_func(self, func: TaskCallback | None) -> None:
        # Backends written for other versions of the protocol set it in their constructors.
        if func is not None:
            self.register_callback(func)

    @property
    def history(self) -> TaskHistory:
        """What became of the present owner's tasks, and before there was one, of all."""
        return self._history

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the tasks in a history that have not ended."""
        return history.active(list(self._works.values()))

    def get_task_states_map(self) -> TaskStates:
        """Return the states of tasks, as attributes, and `terminal_states`."""
        return TaskStates()

    async def submit_tasks(self, tasks: Sequence[Any]) -> None:
        """Take tasks over; see `rhapsody.backends.protocol.Backend.submit_tasks`."""
        attachment = self._attachment
        if attachment is None:
            attachment = self._attachment = Attachment(ignore, self._history)
        attachment.bind(asyncio.get_running_loop())
        attachment.released = False
        works = []
        with self._reporting:
            attachment.history.submitted(len(tasks))
        for task in tasks:
            work = Work(task, attachment, self._work_dir)
            try:
                self.check(work)
                if self._works.setdefault(work.key, work) is not work:
                    raise UnsupportedTaskError(work.uid, "a task of this uid is active already")
            except Exception as error:
                with self._reporting:
                    work.end(TaskStates.FAILED, error)
                attachment.post(task, failure_fields(work, error), TaskStates.FAILED)
            else:
                works.append(work)
        if works:
            self.hand_over(works)

    def hand_over(self, works: list[Work]) -> None:
        """Pass checked tasks from the owner's loop to the service loop."""
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
                self.finish(work, TaskStates.CANCELED)
            raise
        except Exception as error:
            for work in works:
                self.fail(work, error)
        else:
            self.dispatch(works)

    async def answer(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Run one task for whoever awaits this, beside the owner's own.

        AI tasks of workflows go this way. Cancelling this stops the work.

        Args:
            task: An AITask, or any mapping that describes a task. It is not changed.

        Returns:
            Its result fields, such as `response` or `return_value`.

        Raises:
            UnsupportedTaskError: The backend cannot run it.
            TaskCancelledError: The backend was shut down.
            Exception: Whatever the task failed with.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attachment = Attachment(functools.partial(_settle, ended), self._history)
        described = {"uid": "task", **task}
        work = Work(dict(described), attachment, self._work_dir)
        self.check(work)
        with self._reporting:
            self._history.submitted(1)
        self._works[work.key] = work
        self.hand_over([work])
        try:
            await ended
        except asyncio.CancelledError:
            attachment.silence()
            service_loop().call(self._end, work)
            raise
        added = work.task.items()
        return {k: v for k, v in added if k not in described or described[k] is not v}

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task and report it CANCELED.

        Args:
            uid: A uid that the present owner submitted.

        Returns:
            True once it has been stopped; False where it is unknown or ended otherwise.
        """
        work = self._works.get((id(self._attachment), uid))
        return work is not None and await service_loop().run(self._cancel(work))

    async def _cancel(self, work: Work) -> bool:
        if not self.is_active(work):
            return False
        self._end(work)
        if work.job is not None:
            await asyncio.wait([work.job])
        return work.state == TaskStates.CANCELED

    def _cancel_all(self, works: Sequence[Work]) -> None:
        for work in works:
            self._end(work)

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> None:
        """Nothing to link: tasks see the same files."""

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> dict[str, Any]:
        """Name the file at its destination, which is where it already is."""
        return {"target": file_name or os.path.basename(file_path or "")}

    async def shutdown(self) -> None:
        """End all work and release everything; tasks still active are reported CANCELED.

        Idempotent; never raises. The backend starts again when it is used again.
        """
        attachment = self._attachment
        await super().shutdown()
        if attachment is not None:
            await attachment.delivered()

    async def shut_down_once(self) -> None:
        """Shut down, on the service loop; what calls it meanwhile waits for the same end."""
        for handover in tuple(self._handovers):  # also of tasks that came since a shutdown began
            asyncio.get_running_loop().call_soon(handover.cancel)  # see `interrupt`
        await super().shut_down_once()

    def end_all(self) -> list[asyncio.Future[Any]]:
        """End all tasks."""
        works = list(self._works.values())
        self._cancel_all(works)
        return [work.job for work in works if work.job is not None]

    async def _shut_down(self) -> None:
        attachment = self._attachment
        await super()._shut_down()
        if attachment is not None:
            attachment.released = True


def _settle(ended: asyncio.Future[None], task: Mapping[str, Any], state: str) -> None:
    if ended.done() or state not in TaskStates.terminal_states:
        return
    if state == TaskStates.DONE:
        ended.set_result(None)
    elif state == TaskStates.FAILED:
        ended.set_exception(task["exception"])
    else:
        ended.set_exception(TaskCancelledError(task["uid"]))
