"""The state machine of components: the table of transitions and their actions."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.arguments import call_with_values, required
from asyncflow_ext.component import (
    AI,
    BLOCK,
    EXECUTABLE,
    FUNCTION,
    PROMPT,
    Component,
    Event,
    KeptComponent,
    Stage,
    Timers,
)
from asyncflow_ext.data_links import link_data
from asyncflow_ext.execution import Bodies, OwnedTasks, cancel_all
from asyncflow_ext.failures import dependency_failure
from asyncflow_ext.recovery.journal import ComponentJournal
from asyncflow_ext.recovery.walltime import EngineWalltime
from asyncflow_ext.retries import Retries
from asyncflow_ext.scheduling import BackendQueue, ReadyQueue
from asyncflow_ext.telemetry import TaskEvents
from rhapsody.backends.protocol import ATTEMPT_KEY, CONTEXT_KEY, KEEP_KEY, KeptResult
from rhapsody.errors import (
    ConfigurationError,
    EngineError,
    QueueTimeoutError,
    TaskTimeoutError,
    as_exception,
)

__all__ = ["TRANSITIONS", "StateMachine"]

logger = logging.getLogger(__name__)

QUEUE = Event.QUEUE
"""A constant, since `Event.QUEUE` takes 60 ns in Python 3.11, for each task."""

CONFIRM_SECONDS = 2.0
"""How long a backend may take to confirm that it stopped a task."""

FETCH_SECONDS = 10.0
"""How long the shutdown waits for results that backends have kept."""

STOP_SECONDS = 2.0
"""How long an interrupted body may take to end."""


class StateMachine:
    """Moves the components of one engine from stage to stage according to `TRANSITIONS`.

    Args:
        engine: The engine; its registers of components are updated here.
        loop: The engine's loop.
        context: The context in which callbacks run.

    Attributes:
        queues: The queues of the engine's backends, by name.
        ready: Launches components when their dependencies are done.
        bodies: Runs bodies on the caller's loop.
        tasks: The asyncio tasks that end with the engine.
        events: The engine's telemetry.
        journal: Recalls and records results. None: the engine has no journal.
        walltime: Ends the run in time. None: there is no walltime.
        ended: A plain future that is done.
    """

    def __init__(
        self, engine: StockEngine, loop: asyncio.AbstractEventLoop, context: Context
    ) -> None:
        self.queues: dict[str, BackendQueue] = {}
        self.tasks = OwnedTasks()
        self.ready = ReadyQueue(loop, context, self.takes_kept)
        self.ended: asyncio.Future[None] = asyncio.Future(loop=loop)
        self.ended.set_result(None)
        self.bodies = Bodies(engine, loop, self.tasks)
        self.events = TaskEvents(engine)
        self.journal: ComponentJournal | None = None
        self.walltime: EngineWalltime | None = None
        self._retries = Retries(loop, context, self.bodies)
        self._kept: weakref.WeakSet[Component] = weakref.WeakSet()
        self._engine = engine
        self._loop = loop
        self._context = context

    def handle(self, component: Component, event: Event, outcome: Any = None) -> bool:
        """Apply an event to a component.

        Args:
            component: A component of this engine.
            event: What happened.
            outcome: The value of SUCCEED, or the error of an event that fails an attempt.

        Returns:
            False if its stage does not allow the event; then nothing changes.
        """
        transition = TRANSITIONS[event].get(component.stage)
        if transition is None:
            logger.debug(
                "ignored event %s of component %s in stage %s",
                event.name,
                component.uid,
                component.stage.name,
            )
            return False
        component.stage, action = transition
        if action is not None:
            action(self, component, outcome)
        return True

    def launch(self, component: Component) -> None:
        """Start an attempt of a component whose dependencies are done."""
        if self.walltime is not None and self.walltime.reached is not None:
            return  # it ends with the run
        if self._engine._telemetry is not None:
            self.events.resolved(component)
        if component.dependencies:
            dependencies = required(component.dependencies)
            for dependency in dependencies:
                if dependency.cancelled():
                    self.handle(component, Event.ABANDON)
                    return
            if self._kept:
                dependencies = self._without_kept(component, dependencies)
            failure = dependency_failure(component.name, dependencies)
            if failure is not None:
                self.handle(component, Event.FAIL_DEPENDENCY, failure)
                return
            description = component.description
            description["args"], description["kwargs"] = call_with_values(*component.arguments)
        if component.kind == FUNCTION:
            self.handle(component, QUEUE)
        elif component.kind in (BLOCK, AI):
            self.bodies.start(component)  # which sends RUN
            if component.kind == BLOCK:
                self._engine._block_asyncio_tasks[component.uid] = component.job
        else:
            self.handle(component, Event.PREPARE)

    def release(self, component: Component) -> None:
        """Forget a component that has ended; stop its timers and its body."""
        self._leave(component)
        self.ready.resolve_soon(component)

    def _leave(self, component: Component) -> None:
        """Forget a component whose task has ended."""
        if component.uses_kept:
            component.description.update(args=(), kwargs={})
        if component.siblings is not None:
            component.siblings.discard(component)
            component.siblings = None
        if component.timers is not None:
            component.timers.stop()
        if component.job is not None:
            self.bodies.stop_soon(component)
        engine, uid = self._engine, component.uid
        engine._components.end(component)
        engine._graph.ended(component)
        if self.walltime is not None:
            self.walltime.ended(component)
        if component.kind == BLOCK:
            engine._block_asyncio_tasks.pop(uid, None)

    # Results that a backend keeps.

    def takes_kept(self, component: Component, dependency: Component) -> bool:
        """Return whether a component takes a result that the backend of another one keeps."""
        name = component.options.backend or self._engine._default_backend_name
        return (
            component.kind == FUNCTION
            and dependency.kept is not None
            and dependency.machine is self
            and self.queues.get(name) is dependency.queue
        )

    def _without_kept(
        self, component: Component, dependencies: Sequence[asyncio.Future[Any]]
    ) -> Sequence[asyncio.Future[Any]]:
        ended = [one for one in dependencies if type(one) is not KeptComponent]
        component.uses_kept = len(ended) < len(component.dependencies)
        return ended

    async def fetch_all_kept(self) -> None:
        """Fetch the kept results that the program still refers to, as the engine shuts down."""
        kept = [component for component in self._kept if component.kept is not None]
        if not kept:
            return
        limit = "by a shutdown on another event loop"
        if self._loop is asyncio.get_running_loop():
            limit = f"within {FETCH_SECONDS:g} s of the shutdown"
            for component in kept:
                self.handle(component, Event.FETCH)
            await asyncio.wait(kept, timeout=FETCH_SECONDS)
        for component in kept:
            if component.kept is not None:
                error = EngineError(
                    f"the result of '{component.name}' was kept by its backend, and could not be "
                    f"fetched {limit}; await it before"
                )
                self.handle(component, Event.FAIL, error)

    def _keep(self, component: Component, result: KeptResult) -> None:
        component.state = "DONE"
        dependents = component.dependents or ()
        is_wanted = component.keep(result)
        self._kept.add(component)
        if self._engine._telemetry is not None:
            self.events.ended("TaskCompleted", component)
        self._leave(component)
        takers: list[Component] = []
        others: list[Component] = []
        for one in dependents:
            (takers if self.takes_kept(one, component) else others).append(one)
        component.dependents = others or None
        self.ready.resolve_kept(component, takers)
        if is_wanted or component.dependents:
            self.handle(component, Event.FETCH)

    def _fetch(self, component: Component, _: Any) -> None:
        assert component.kept is not None
        job = self._fetch_kept(component, component.kept)
        self.tasks.add(asyncio.Task(job, loop=self._loop))

    async def _fetch_kept(self, component: Component, kept: KeptResult) -> None:
        try:
            value = await kept.fetch()
        except asyncio.CancelledError:
            error = EngineError(
                f"the result of '{component.name}' was kept by its backend, and its event loop "
                "ended while it was fetched; await it before"
            )
            self.handle(component, Event.FAIL, error)
            raise
        except BaseException as failure:
            self.handle(component, Event.FAIL, as_exception(failure))
        else:
            self.handle(component, Event.SUCCEED, value)

    def _finish_kept(self, component: Component, value: Any) -> None:
        component.description["return_value"] = value
        self._end_kept(component)
        component.set_result(value)

    def _fail_kept(self, component: Component, error: BaseException) -> None:
        component.description.pop("return_value", None)
        component.state = "FAILED"
        self._end_kept(component)
        try:
            component.set_exception(error)
        except RuntimeError:  # a closed loop cannot call those who wait
            if not self._loop.is_closed():
                raise
        component.exception()  # mark it as retrieved: nobody may wait for it

    def _cancel_kept(self, component: Component, _: Any) -> None:
        component.description.pop("return_value", None)
        component.state = "CANCELLED"
        self._end_kept(component)
        component.end_cancelled()

    def _cancel_unkept(self, component: Component, _: Any) -> None:
        component.description.pop("return_value", None)
        self._cancel(component, None)

    def _end_kept(self, component: Component) -> None:
        component.end_kept()
        self.ready.resolve_soon(component)

    # Actions of `TRANSITIONS`, called with the outcome of the event.

    def _prepare(self, component: Component, _: Any) -> None:
        self._start_timeout(component)
        self.bodies.start_preparing(component)

    def _run(self, component: Component, _: Any) -> None:
        component.state = "RUNNING"
        component.members = component.members or set()
        self._start_timeout(component)
        if component.kind == AI and self._engine._telemetry is not None:
            self.events.started_here(component)

    def _queue(self, component: Component, _: Any) -> None:
        if component.timers is not None and component.kind == EXECUTABLE:
            component.timers.stop()  # the timeout limits the function and the command, each
            component.timers = None
        if self.journal is None or not self.journal.recall(component):
            self.enqueue(component)

    def enqueue(self, component: Component) -> None:
        """Put a component into the queue of its backend."""
        if self.walltime is not None and not self.walltime.may_launch(component):
            return  # it ends with the run
        engine, options = self._engine, component.options
        name = options.backend or engine._default_backend_name
        queue = self.queues.get(name)
        if queue is None:
            raise ConfigurationError(
                f"the engine has no backend '{name}' for '{component.name}'; it has "
                + ", ".join(f"'{known}'" for known in self.queues)
            )
        if engine._links_implicit_data or engine._links_explicit_data:
            link_data(engine, component)
        if component.attempt == options.retries:  # no later attempt needs them
            component.dependencies = component.arguments = ()
        if engine._telemetry is not None:
            self.events.queued(component)
        if component.kind == FUNCTION and component.context is not None and queue.carries_contexts:
            component.description[CONTEXT_KEY] = component.context
        if queue.keeps_results and component.kind == FUNCTION and self.journal is None:
            component.description[KEEP_KEY] = True
        if options.retries and queue.keeps_history:
            component.description[ATTEMPT_KEY] = component.current_attempt()
        if options.queue_timeout is not None:
            timers = _timers_of(component)
            timers.queue = self._loop.call_later(
                options.queue_timeout, self._on_queue_timeout, component, context=self._context
            )
        component.queue = queue
        queue.add(component)

    def _submit(self, component: Component, _: Any) -> None:
        engine = self._engine
        if component.options.timeout is not None and (
            component.kind == PROMPT
            or (component.queue is not None and not component.queue.reports_running)
        ):
            self._start_timeout(component)
        if engine._telemetry is not None:
            self.events.submitted(component)

    def _start(self, component: Component, _: Any) -> None:
        component.state = "RUNNING"
        if component.timers is not None and component.timers.queue is not None:
            component.timers.queue.cancel()
        if component.options.timeout is not None:
            self._start_timeout(component)
        if self._engine._telemetry is not None:
            self.events.started(component)

    def _recall(self, component: Component, fields: Any) -> None:
        component.state = "DONE"
        description = component.description
        description.update(fields, from_journal=True)
        if self.journal is not None:
            self.journal.recalled.add(component.uid, component.kind, description)
        key = "stdout" if component.kind in (EXECUTABLE, PROMPT) else "return_value"
        component.set_result(description[key])
        if self._engine._telemetry is not None:
            self.events.ended("TaskCompleted", component, attributes={"from_journal": True})

    def _finish(self, component: Component, value: Any) -> None:
        component.state = "DONE"
        component.set_result(value)
        if self.journal is not None:  # after that: equal calls that wait for it end now
            self.journal.done(component, value)
        if self._engine._telemetry is not None:
            self.events.ended("TaskCompleted", component)

    def _fail(self, component: Component, error: BaseException) -> None:
        component.state = "FAILED"
        if self.journal is not None:
            self.journal.ended(component, "FAILED", error)
        component.set_exception(as_exception(error))
        if self._engine._telemetry is not None:
            self.events.ended("TaskFailed", component, error_type=type(error).__name__)

    def _cancel(self, component: Component, _: Any) -> None:
        component.state = "CANCELLED"
        if self.journal is not None:
            self.journal.ended(component, "CANCELED")
        self._cancel_members(component)
        component.end_cancelled()
        if self._engine._telemetry is not None:
            self.events.ended("TaskCanceled", component)

    def _cancel_finished(self, component: Component, value: Any) -> None:
        """Cancel a component whose result came before its backend stopped it.

        The journal keeps the result. The future does not: `asyncio` takes a future whose `cancel`
        returned True for cancelled, so a caller that was cancelled would go on with the result.
        """
        if self.journal is not None:
            self.journal.done(component, value)
        self._cancel(component, None)

    def _cancel_pause(self, component: Component, _: Any) -> None:
        self._count_cancelled_pause(component)
        self._cancel(component, None)

    def _end_pause(self, component: Component, error: BaseException) -> None:
        self._count_cancelled_pause(component)
        self._end(component, error)

    def _count_cancelled_pause(self, component: Component) -> None:
        """Have the backends count it as CANCELED: of the attempt they know that it failed."""
        for queue in self.queues.values():
            if queue.keeps_history:
                queue.backend.report_cancelled_in_pause(component.uid)

    def _end(self, component: Component, error: BaseException) -> None:
        component.state = "CANCELLED"
        if self.journal is not None:
            self.journal.ended(component, "CANCELED", error)
        component.set_exception(error)
        component.exception()  # mark it as retrieved: nobody may wait for it
        if self._engine._telemetry is not None:
            self.events.ended("TaskCanceled", component)

    def _retry(self, component: Component, error: BaseException) -> None:
        if _is_last_attempt(component):
            component.stage = Stage.FAILED
            self._fail(component, error)
            return
        if component.timers is not None:
            component.timers.stop()
        self._retries.pause(component)

    def _resume(self, component: Component, _: Any) -> None:
        component.timers = None
        self.ready.launch_soon(component)

    def _time_out(self, component: Component, _: Any) -> None:
        if _is_last_attempt(component):
            component.stage = Stage.FAILED
            self._fail_timed_out(component, None)
        else:
            self._retry(component, _timeout_error(component))

    def _fail_timed_out(self, component: Component, _: Any) -> None:
        self._cancel_members(component)
        self._fail(component, _timeout_error(component))

    def _await_confirmation(self, component: Component, _: Any) -> None:
        timers = _timers_of(component)
        timers.confirmation = self._loop.call_later(
            CONFIRM_SECONDS, self._on_unconfirmed, component, context=self._context
        )

    def _on_unconfirmed(self, component: Component) -> None:
        logger.warning(
            "the backend did not confirm within %g s that it stopped task %s",
            CONFIRM_SECONDS,
            component.uid,
        )
        self.handle(component, Event.GIVE_UP)

    def _ask_backend(self, component: Component, _: Any) -> None:
        assert component.queue is not None
        component.queue.cancel(component)

    def _ask_to_time_out(self, component: Component, _: Any) -> None:
        assert component.queue is not None
        component.queue.time_out(component, _timeout_error(component))

    def _time_out_at_backend(self, component: Component, _: Any) -> None:
        self._await_confirmation(component, None)
        self._ask_to_time_out(component, None)

    def _cancel_unaccepted(self, component: Component, _: Any) -> None:
        assert component.queue is not None
        component.queue.stop_when_accepted(component)
        self._cancel(component, None)

    def _fail_unaccepted(self, component: Component, _: Any) -> None:
        assert component.queue is not None
        component.queue.stop_when_accepted(component, _timeout_error(component))
        self._fail_timed_out(component, None)

    def _stop_at_backend(self, component: Component, _: Any) -> None:
        self._await_confirmation(component, None)
        self._ask_backend(component, None)

    def _interrupt_body(self, component: Component, _: Any) -> None:
        assert component.job is not None
        component.job.cancel()
        timers = _timers_of(component)
        timers.body_stop = self._loop.call_later(
            STOP_SECONDS, component.handle, Event.GIVE_UP, context=self._context
        )

    def _start_timeout(self, component: Component) -> None:
        limit = component.options.timeout
        if limit is None:
            return
        timers = _timers_of(component)
        if timers.timeout is None:
            timers.timeout = self._loop.call_later(
                limit, component.handle, Event.TIMEOUT, context=self._context
            )

    def _on_queue_timeout(self, component: Component) -> None:
        _timers_of(component).waited_too_long = True
        self.handle(component, Event.TIMEOUT)

    def _cancel_members(self, component: Component) -> None:
        # After the end of the loop, the engine's shutdown cancels each of them.
        if component.members and not self._loop.is_closed():
            # A direct call would exceed the recursion limit in deeply nested blocks.
            self._loop.call_soon(cancel_all, component.members, context=self._context)


def _timers_of(component: Component) -> Timers:
    if component.timers is None:
        component.timers = Timers()
    return component.timers


def _timeout_error(component: Component) -> TaskTimeoutError:
    options, timers = component.options, component.timers
    if timers is not None and timers.waited_too_long:
        return QueueTimeoutError(component.uid, options.queue_timeout or 0.0)
    return TaskTimeoutError(component.uid, options.timeout or 0.0)


def _is_last_attempt(component: Component) -> bool:
    """Return whether no attempt follows; a task that waited too long made none."""
    timers = component.timers
    waited_too_long = timers is not None and timers.waited_too_long
    return waited_too_long or component.options.retry_policy.is_last(component.attempt)


Action = Callable[[StateMachine, Component, Any], None]

Transition = tuple[Stage, Action | None]
"""The next stage and the action."""

# Both actions set the stage to FAILED if no attempt is left.
RETRY: Transition = (Stage.PAUSING, StateMachine._retry)
TIME_OUT: Transition = (Stage.PAUSING, StateMachine._time_out)

KEEP: Transition = (Stage.KEPT, StateMachine._keep)
FAIL_KEPT: Transition = (Stage.FAILED, StateMachine._fail_kept)
CANCEL_KEPT: Transition = (Stage.CANCELLED, StateMachine._cancel_kept)
CANCEL_UNKEPT: Transition = (Stage.CANCELLED, StateMachine._cancel_unkept)
FINISH: Transition = (Stage.DONE, StateMachine._finish)
CANCEL: Transition = (Stage.CANCELLED, StateMachine._cancel)
CANCEL_FINISHED: Transition = (Stage.CANCELLED, StateMachine._cancel_finished)
CANCEL_PAUSE: Transition = (Stage.CANCELLED, StateMachine._cancel_pause)
FAIL_TIMED_OUT: Transition = (Stage.FAILED, StateMachine._fail_timed_out)

TRANSITIONS: Mapping[Event, Mapping[Stage, Transition]] = {
    Event.PREPARE: {Stage.WAITING: (Stage.PREPARING, StateMachine._prepare)},
    Event.RUN: {Stage.WAITING: (Stage.RUNNING, StateMachine._run)},
    Event.QUEUE: {
        Stage.WAITING: (Stage.QUEUED, StateMachine._queue),
        Stage.PREPARING: (Stage.QUEUED, StateMachine._queue),
    },
    Event.SUBMIT: {Stage.QUEUED: (Stage.SUBMITTING, StateMachine._submit)},
    Event.ACCEPT: {
        Stage.SUBMITTING: (Stage.SUBMITTED, None),
        Stage.CANCEL_PENDING: (Stage.CANCELLING, StateMachine._ask_backend),
        Stage.TIMEOUT_PENDING: (Stage.TIMING_OUT, StateMachine._ask_to_time_out),
    },
    Event.START: {
        Stage.SUBMITTING: (Stage.SUBMITTING, StateMachine._start),
        Stage.SUBMITTED: (Stage.SUBMITTED, StateMachine._start),
    },
    Event.REJECT: {
        Stage.SUBMITTING: RETRY,
        Stage.CANCEL_PENDING: CANCEL,
        Stage.TIMEOUT_PENDING: RETRY,
    },
    Event.SUCCEED: {
        Stage.SUBMITTING: FINISH,
        Stage.SUBMITTED: FINISH,
        Stage.RUNNING: FINISH,
        Stage.CANCEL_PENDING: CANCEL_FINISHED,
        Stage.CANCELLING: CANCEL_FINISHED,
        Stage.TIMEOUT_PENDING: FINISH,
        Stage.TIMING_OUT: FINISH,
        Stage.STOPPING_BODY: TIME_OUT,
        Stage.FETCHING: (Stage.DONE, StateMachine._finish_kept),
    },
    Event.KEEP: {
        Stage.SUBMITTING: KEEP,
        Stage.SUBMITTED: KEEP,
        Stage.CANCEL_PENDING: CANCEL_UNKEPT,
        Stage.CANCELLING: CANCEL_UNKEPT,
        Stage.TIMEOUT_PENDING: KEEP,
        Stage.TIMING_OUT: KEEP,
    },
    Event.FETCH: {Stage.KEPT: (Stage.FETCHING, StateMachine._fetch)},
    Event.FAIL: {
        Stage.WAITING: RETRY,
        Stage.PREPARING: RETRY,
        Stage.QUEUED: RETRY,
        Stage.SUBMITTING: RETRY,
        Stage.SUBMITTED: RETRY,
        Stage.RUNNING: RETRY,
        Stage.CANCEL_PENDING: CANCEL,
        Stage.CANCELLING: CANCEL,
        Stage.TIMEOUT_PENDING: RETRY,
        Stage.TIMING_OUT: RETRY,
        Stage.STOPPING_BODY: TIME_OUT,
        Stage.KEPT: FAIL_KEPT,
        Stage.FETCHING: FAIL_KEPT,
    },
    Event.END: {
        stage: (Stage.CANCELLED, StateMachine._end) for stage in Stage if stage < Stage.KEPT
    }
    | {Stage.PAUSING: (Stage.CANCELLED, StateMachine._end_pause)},
    Event.RECALL: {Stage.QUEUED: (Stage.DONE, StateMachine._recall)},
    Event.FAIL_DEPENDENCY: {Stage.WAITING: (Stage.FAILED, StateMachine._fail)},
    Event.STOP: {
        Stage.PREPARING: CANCEL,
        Stage.SUBMITTING: CANCEL,
        Stage.SUBMITTED: CANCEL,
        Stage.RUNNING: CANCEL,
        Stage.CANCEL_PENDING: CANCEL,
        Stage.CANCELLING: CANCEL,
        Stage.TIMEOUT_PENDING: TIME_OUT,
        Stage.TIMING_OUT: TIME_OUT,
        Stage.STOPPING_BODY: TIME_OUT,
    },
    Event.CANCEL: {
        Stage.WAITING: CANCEL,
        Stage.PAUSING: CANCEL_PAUSE,
        Stage.PREPARING: CANCEL,
        Stage.QUEUED: CANCEL,
        Stage.SUBMITTING: (Stage.CANCEL_PENDING, StateMachine._await_confirmation),
        Stage.SUBMITTED: (Stage.CANCELLING, StateMachine._stop_at_backend),
        Stage.RUNNING: CANCEL,
        Stage.TIMEOUT_PENDING: (Stage.CANCEL_PENDING, None),
        Stage.TIMING_OUT: (Stage.CANCELLING, None),
        Stage.STOPPING_BODY: CANCEL,
        Stage.KEPT: CANCEL_KEPT,
        Stage.FETCHING: CANCEL_KEPT,
    },
    Event.TIMEOUT: {
        Stage.PREPARING: TIME_OUT,
        Stage.QUEUED: TIME_OUT,
        Stage.SUBMITTING: (Stage.TIMEOUT_PENDING, StateMachine._await_confirmation),
        Stage.SUBMITTED: (Stage.TIMING_OUT, StateMachine._time_out_at_backend),
        Stage.RUNNING: (Stage.STOPPING_BODY, StateMachine._interrupt_body),
    },
    Event.GIVE_UP: {
        Stage.CANCEL_PENDING: (Stage.CANCELLED, StateMachine._cancel_unaccepted),
        Stage.CANCELLING: CANCEL,
        Stage.TIMEOUT_PENDING: (Stage.FAILED, StateMachine._fail_unaccepted),
        Stage.TIMING_OUT: FAIL_TIMED_OUT,
        Stage.STOPPING_BODY: FAIL_TIMED_OUT,
    },
    Event.RESUME: {Stage.PAUSING: (Stage.WAITING, StateMachine._resume)},
    Event.ABANDON: {stage: CANCEL for stage in Stage if stage < Stage.KEPT}
    | {Stage.PAUSING: CANCEL_PAUSE},
}
"""The transition for each event and each stage that allows the event."""
