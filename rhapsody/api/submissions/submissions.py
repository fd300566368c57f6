"""The submitted tasks of a session: hands them to backends and records their states."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from rhapsody.api.agents import SessionAgents, is_agent
from rhapsody.api.journaling import SessionJournal
from rhapsody.api.submissions.checks import TaskChecks
from rhapsody.api.submissions.parts import after_part, in_parts
from rhapsody.api.submissions.submission import AnyTask, Submission
from rhapsody.api.submissions.unseen_failures import UnseenFailures
from rhapsody.api.tasks import BaseTask
from rhapsody.api.tasks.base import check_loop
from rhapsody.api.walltime import SessionWalltime
from rhapsody.backends.core.nested_runs import has_helper
from rhapsody.backends.core.retries import clear_result, policy_of
from rhapsody.backends.protocol import (
    ATTEMPT_KEY,
    CONTEXT_KEY,
    REPORTED_STATES,
    TaskStates,
    main_state,
)
from rhapsody.errors import QueueTimeoutError, SessionError, WalltimeReached
from rhapsody.garbage import prepare_for, watch_tasks
from rhapsody.report.runs import OwnerHistory
from rhapsody.streaming import TextCallback
from rhapsody.validation import brief

if TYPE_CHECKING:
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["Submissions"]

logger = logging.getLogger(__name__)


class Submissions:
    """All submissions of a session: hands tasks to backends and records their states.

    Args:
        reattach: A method that attaches the session to a backend again, if another owner had the
            backend meanwhile. None: no such method.
        submit: The session's `submit_tasks`, for the turns of agents. None: there are no agents.

    Attributes:
        active: Submissions whose tasks have not ended, by uid.
        checks: Checks new tasks, and knows the uids that are taken.
        unseen_failures: Failed tasks of `submit_soon` whose results nobody asked for.
        histories: By name, for backends that keep no history themselves.
        agents: Runs the AI tasks with tools.
        telemetry: The session's telemetry, once it was started.
        journal: Recalls and records results. None: the session has no journal.
        walltime: Ends the run in time. None: there is no walltime.
        closing: Whether the session closes, so that tasks are cancelled instead of handed over.
    """

    def __init__(
        self,
        reattach: Callable[[Any], None] | None = None,
        submit: Callable[[Any], Any] | None = None,
    ) -> None:
        # Held weakly: a session that nobody holds any more must end without a garbage collection.
        self._reattach = None if reattach is None else weakref.WeakMethod(reattach)
        self.agents = SessionAgents(submit)
        self.active: dict[str, Submission] = {}
        self.checks = TaskChecks(self.active)
        self.unseen_failures = UnseenFailures()
        self.histories: dict[str, OwnerHistory] = {}
        self.telemetry: TelemetryManager | None = None
        self.journal: SessionJournal | None = None
        self.walltime: SessionWalltime | None = None
        self.closing = False
        self._run_end: WalltimeReached | None = None
        watch_tasks(self, lambda one: len(one.active) + one.checks.entering)
        self._handovers: set[asyncio.Task[Any]] = set()
        # Tasks that were submitted in this pass of the loop, by the name of their backend.
        self._queued: dict[str, tuple[Any, list[AnyTask]]] = {}

    def reattach(self, backend: Any) -> None:
        """Attach the session to a backend again, if another owner had it meanwhile."""
        reattach = None if self._reattach is None else self._reattach()
        if reattach is not None:
            reattach(backend)

    @property
    def reached(self) -> WalltimeReached | None:
        """The error of tasks that are not run any more, since the batch job ends."""
        return None if self.walltime is None else self.walltime.reached

    async def submit(
        self, batches: Sequence[tuple[Any, list[AnyTask]]], loop: asyncio.AbstractEventLoop
    ) -> dict[str, asyncio.Future[AnyTask]]:
        """Hand batches of tasks to their backends, each in parts.

        Args:
            batches: Backends, each with its tasks.
            loop: The loop of the futures.

        Returns:
            The future of each task, by uid.
        """
        futures = {}
        left: deque[AnyTask] = deque()
        try:
            for backend, batch in batches:
                for part in in_parts(batch):
                    for task in part:
                        futures[task["uid"]] = self.add(task, backend, loop.create_future())
                    left.extend(part)
                    await after_part(batch)
            for backend, batch in batches:
                for part in in_parts(batch):
                    for _ in part:
                        left.popleft()
                    await self._recall_or_hand_over(backend, list(part))
                    await after_part(batch)
        finally:  # if this call is cancelled, no backend will report the remaining tasks
            for task in left:
                self.on_state(task, TaskStates.CANCELED)
        return futures

    async def wait(self, tasks: Sequence[AnyTask], timeout: float | None) -> int:
        """Wait until tasks have ended.

        Args:
            tasks: Submitted tasks.
            timeout: Longest wait in seconds. None: no limit.

        Returns:
            The number of tasks that have not ended in time.

        Raises:
            SessionError: As `find` raises it.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        prepare_for(len(tasks))
        for part in in_parts(tasks):
            for task in part:
                self.find(task)
            await after_part(tasks)
        pending = 0
        for part in in_parts(tasks):
            active = [self.active.get(task["uid"]) for task in part]
            if waiting := [submission.ended for submission in active if submission is not None]:
                seconds = None if deadline is None else max(0.0, deadline - loop.time())
                pending += len((await asyncio.wait(waiting, timeout=seconds))[1])
            await after_part(tasks)
        return pending

    def submit_soon(
        self, task: AnyTask, backend: Any, future: asyncio.Future[AnyTask], context: Context
    ) -> None:
        """Hand a task to its backend in the next pass of the loop, with others of this pass.

        Args:
            task: A valid and new task.
            backend: Its backend.
            future: Its future, which belongs to the running loop.
            context: The context of the call, in which a function in a thread runs.
        """
        self.add(task, backend, future)
        if isinstance(task, BaseTask):
            self.unseen_failures.watch(task, future)
        if getattr(backend, "carries_contexts", False):
            task[CONTEXT_KEY] = context
        if has_helper():  # in this context, and not in that of another task
            self._start(self._recall_or_hand_over(backend, [task]))
            return
        if not self._queued:
            future.get_loop().call_soon(self._hand_over_queued)
        self._queued.setdefault(backend.name, (backend, []))[1].append(task)

    def _hand_over_queued(self) -> None:
        queued, self._queued = self._queued, {}
        for backend, batch in queued.values():
            self._start(self._recall_or_hand_over(backend, batch))

    def _start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        job = asyncio.get_running_loop().create_task(coroutine)
        self._handovers.add(job)
        job.add_done_callback(self._handovers.discard)

    async def _recall_or_hand_over(self, backend: Any, batch: list[AnyTask]) -> None:
        if self.journal is not None:
            batch = [task for task in batch if not self._is_recalled(task, backend)]
        if batch:
            await self._hand_over(backend, batch)

    def _is_recalled(self, task: AnyTask, backend: Any) -> bool:
        """Return whether the journal ends a task; an error of it must not stop the others."""
        assert self.journal is not None
        if is_agent(task):  # its turns and its calls are recalled
            return False
        try:
            return self.journal.recall(task, backend)
        except Exception as error:
            task.setdefault("exception", error)
            self.on_state(task, TaskStates.FAILED)
            return True

    def add(
        self, task: AnyTask, backend: Any, future: asyncio.Future[AnyTask]
    ) -> asyncio.Future[AnyTask]:
        """Count a task as active, before its backend gets it."""
        if isinstance(task, BaseTask):
            task.bind_future(future)
        task["backend"] = backend.name
        task["state"] = TaskStates.PENDING
        self.active[task["uid"]] = Submission(task, backend, future)
        if self.telemetry is not None:
            self.telemetry.on_task_created(task)
        return future

    def _cancel_if_late(self, batch: list[AnyTask]) -> None:
        """Cancel tasks that come after the end of the run, or while the session closes.

        They are retries, tasks of other threads, and parts of a submission that has not returned.
        """
        if self._run_end is not None:
            self._end_with(self._run_end, batch)
        elif self.closing:
            for task in batch:
                self.on_state(task, TaskStates.CANCELED)

    def _end_with(self, error: WalltimeReached, tasks: Iterable[AnyTask]) -> None:
        for task in tasks:
            if task["uid"] in self.active:
                task["exception"] = error
                self.on_state(task, TaskStates.CANCELED)

    async def _hand_over(self, backend: Any, batch: list[AnyTask]) -> None:
        self._cancel_if_late(batch)
        submissions = [self.active.get(task["uid"]) for task in batch]
        if None in submissions:  # cancelled meanwhile
            batch = [task for task in batch if task["uid"] in self.active]
            if not batch:
                return
        if self.walltime is not None:
            held = {
                submission.task["uid"]
                for submission in submissions
                if submission is not None and not self.walltime.may_hand_over(submission)
            }
            batch = [task for task in batch if task["uid"] not in held]
            submissions = [self.active[task["uid"]] for task in batch]
            if not batch:
                return
        for submission in submissions:
            if submission is not None:
                submission.at_backend = True
                if submission.task.get("retries"):
                    task, policy = submission.task, policy_of(submission.task)
                    task[ATTEMPT_KEY] = policy.attempt(task["uid"], submission.failed)
        await self._give(backend, batch)

    async def _give(self, backend: Any, batch: list[AnyTask]) -> None:
        """Give tasks to their backend, and start those that are agents."""
        if self.histories and backend.name in self.histories:
            for task in batch:
                self.histories[backend.name].submitted(task)
        if self.telemetry is not None:
            for task in batch:
                self.telemetry.on_task_submitted(task)
                self.telemetry.on_task_queued(task)
        try:
            self.reattach(backend)
            if batch := self._start_agents(backend, batch):
                await backend.submit_tasks(batch)
        except Exception as error:  # backends must report failures instead, task by task
            logger.exception("backend '%s' raised from submit_tasks", backend.name)
            for task in batch:
                task.setdefault("exception", error)
                self.on_state(task, TaskStates.FAILED)

    def _start_agents(self, backend: Any, batch: list[AnyTask]) -> list[AnyTask]:
        """Start the agents among tasks, and return the others."""
        others = []
        for task in batch:
            if is_agent(task):
                task.pop(ATTEMPT_KEY, None)
                self.agents.start(self, task, backend)
            else:
                others.append(task)
        return others

    async def stop_agents(self) -> None:
        """Cancel the agents: their turns cannot go on while the session closes."""
        for submission in list(self.active.values()):
            if is_agent(submission.task):
                self.on_state(submission.task, TaskStates.CANCELED)
        await self.agents.wait_stopped()

    def on_state(self, task: AnyTask, state: str) -> None:
        """Record a state that a backend reports."""
        submission = self.active.get(task["uid"])
        if submission is None:
            return
        if state not in REPORTED_STATES:
            own_state, state = state, main_state(submission.backend, state) or ""
            if not state:
                logger.debug("ignored the state %s of task %s", own_state, task["uid"])
                return
        guard = self.walltime
        if (
            guard is not None
            and state == TaskStates.CANCELED
            and task["uid"] in guard.withdrawn
            and task.get("exception") is not guard.reached
        ):
            return  # its backend gave it back, and it ends with the run
        if state == TaskStates.FAILED and self._repeat(submission):
            return
        if state in TaskStates.terminal_states and self.journal is not None:
            if self.journal.hold(task, state, lambda: self.on_state(task, state)):
                return
            self.journal.ended(task, state)
        if self.histories and submission.backend.name in self.histories:
            self.histories[submission.backend.name].on_state(task, state)
        if state == TaskStates.CANCELED and submission.pause and not submission.at_backend:
            history = self.histories.get(submission.backend.name, submission.backend)
            history.report_cancelled_in_pause(task["uid"])
        if state in TaskStates.terminal_states:
            self._end(submission, state)
        elif state == TaskStates.RUNNING:
            task["state"] = state
        if self.telemetry is not None:
            self.telemetry.on_task_state(task, state)

    def _end(self, submission: Submission, state: str) -> None:
        task = submission.task
        self._remove(submission)
        self.agents.stop(task["uid"])
        if submission.pause is not None:
            submission.pause.cancel()
        task["state"] = state
        submission.settle(state)

    def _remove(self, submission: Submission) -> None:
        """Count a task as active no more."""
        task = submission.task
        if isinstance(task, BaseTask):
            self.checks.hold(task)
        del self.active[task["uid"]]
        if self.walltime is not None:
            self.walltime.ended(submission)

    def _repeat(self, submission: Submission) -> bool:
        """Start another attempt of a task that failed, after a pause; False if none follows."""
        task = submission.task
        policy = policy_of(task)
        if policy.is_last(submission.failed) or isinstance(
            task.get("exception"), QueueTimeoutError
        ):
            return False
        if self.histories and submission.backend.name in self.histories:
            self.histories[submission.backend.name].on_state(task, TaskStates.FAILED)
        clear_result(task)
        task["state"] = TaskStates.PENDING
        submission.at_backend = False
        submission.pause = submission.future.get_loop().call_later(
            policy.pause(submission.failed),
            self._start_again,
            submission,
            context=submission.context,
        )
        submission.failed += 1
        return True

    def _start_again(self, submission: Submission) -> None:
        self._start(self._hand_over(submission.backend, [submission.task]))

    def on_recalled(self, task: AnyTask, fields: Mapping[str, Any] | None) -> None:
        """End a task with the result fields from the journal; None: run it after all."""
        submission = self.active.get(task["uid"])
        if submission is None:
            return
        if fields is None:
            context = copy_context() if submission.context is None else submission.context.copy()
            context.run(self._start_again, submission)
            return
        self._remove(submission)
        task.pop(CONTEXT_KEY, None)
        task.update(fields, from_journal=True, state=TaskStates.DONE)
        on_text = task.get("on_text")
        if callable(on_text) and isinstance(task.get("response"), str):
            TextCallback(task["uid"], on_text)(task["response"])
        submission.settle(TaskStates.DONE)
        if self.telemetry is not None:
            self.telemetry.on_task_state(task, TaskStates.DONE)

    def find(self, task: AnyTask) -> Submission | None:
        """Return the submission of a task to wait for, or None if the task has ended.

        Raises:
            SessionError: The task was not submitted to this session, or on another loop.
        """
        if not isinstance(task, MutableMapping):
            raise SessionError(f"only tasks of this session can be waited for, got {brief(task)}")
        if isinstance(task, BaseTask):
            task.mark_seen()
        submission = self.active.get(task.get("uid", ""))
        if submission is None and task.get("state") not in TaskStates.terminal_states:
            raise SessionError(f"task {task.get('uid')} was not submitted to this session")
        if submission is not None:
            check_loop(task["uid"], submission.future)
        return submission

    async def cancel(self, uid: str) -> bool:
        """Ask a task's backend to cancel it; return False if the task has ended or is unknown."""
        submission = self.active.get(uid)
        if submission is None:
            return False
        if submission.future.get_loop().is_closed():  # the cancellation could not be delivered
            check_loop(uid, submission.future)
        if not submission.at_backend:
            self.on_state(submission.task, TaskStates.CANCELED)
            return True
        if (stopping := self.agents.stop(uid)) is not None:
            self.on_state(submission.task, TaskStates.CANCELED)
            await asyncio.wait([stopping])
            return True
        return bool(await submission.backend.cancel_task(uid))

    def cancel_soon(self, tasks: Iterable[AnyTask]) -> None:
        """Ask the backends to cancel tasks; those that have ended are left out."""
        self._start(self._cancel_all([task["uid"] for task in tasks]))

    async def _cancel_all(self, uids: Iterable[str]) -> None:
        cancellations = map(self.cancel, uids)
        for outcome in await asyncio.gather(*cancellations, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("a task could not be cancelled", exc_info=outcome)

    def end_run(self, error: WalltimeReached) -> None:
        """End every active task with an error: its batch job ends."""
        self._run_end = error
        self._end_with(error, [submission.task for submission in self.active.values()])

    def cancel_waiting(self) -> None:
        """Cancel the tasks that no backend has: those of this pass, and those that are repeated."""
        for submission in list(self.active.values()):
            if not submission.at_backend:
                self.on_state(submission.task, TaskStates.CANCELED)

    def cancel_remaining(self) -> None:
        """Mark every active task as cancelled, after its backend has shut down silently."""
        for submission in list(self.active.values()):
            self.on_state(submission.task, TaskStates.CANCELED)
