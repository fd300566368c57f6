"""AsyncFlow's engine, driven by events: what ends wakes what waits for it, and nothing polls."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import signals
from asyncflow_ext.ai_task import extend
from asyncflow_ext.attempts import STOP_SECONDS, Attempts
from asyncflow_ext.bodies import Bodies
from asyncflow_ext.cancelling import Canceller
from asyncflow_ext.component import Component, Stage
from asyncflow_ext.creation import Creation
from asyncflow_ext.data_links import link_data, metadata
from asyncflow_ext.decorators import Decorated, make_decorator
from asyncflow_ext.events import TaskEvents
from asyncflow_ext.failures import as_exception, dependency_failure, reported_error
from asyncflow_ext.futures import with_values
from asyncflow_ext.jobs import Jobs, cancel_all
from asyncflow_ext.sender import Sender
from asyncflow_ext.stock import check_stock
from asyncflow_ext.waiting import Waiting
from rhapsody.api.errors import ConfigurationError, TaskTimeoutError

__all__ = ["WorkflowEngine"]

logger = logging.getLogger(__name__)

BLOCK, EXECUTABLE, FUNCTION, PROMPT = "block", "executable", "function", "prompt"
AI, TASK = "ai", "task"

_uids = count(1)  # of all engines of the process: two of them never use the same uid


class WorkflowEngine(StockEngine):  # type: ignore[misc]
    """A drop-in for the stock engine of `radical.asyncflow`; only the import changes.

    Make one by `flow = await WorkflowEngine.create(backend=...)`, or with its shutdown seen to by
    `async with WorkflowEngine.create(backend=...) as flow`. Beyond the stock engine it has the
    `ai_task` decorator, and every decorator takes `retries=`, `backoff=` and `timeout=`.

    Raises:
        ConfigurationError: Two of its backends have the same name.
        BackendInUseError: A backend belongs to another engine or session that is still open.
        ImportError: The installed AsyncFlow is not one that this engine fits.
    """

    def __init__(
        self,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | None = None,
    ) -> None:
        check_stock()
        self._senders: dict[str, Sender] = {}
        self._closer: asyncio.Task[None] | None = None
        if isinstance(backend, list) and not backend:
            raise ConfigurationError("the engine needs at least one backend, or dry_run=True")
        # What the engine does by itself runs in the context that it was made in, not in that of
        # whichever task happened to come first.
        self._context = copy_context()
        self._events = TaskEvents(self)
        loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._jobs = Jobs(loop)
        self._canceller = Canceller(loop, self._sender_of, self._end_cancelled, self._jobs.own)
        self._waiting = Waiting(loop, self._context, self._launch, self._end_cancelled, self._fail)
        self._attempts = Attempts(
            loop,
            self._context,
            self._jobs,
            self._canceller,
            self._waiting.launch_soon,
            self._end_cancelled,
        )
        self._bodies = Bodies(
            self._begin_body, self._queue, self._succeed, self._fail, self._end_cancelled
        )
        self._block: ContextVar[Component | None] = ContextVar("block", default=None)
        try:
            super().__init__(backend, dry_run, implicit_data, uid, work_dir)
        except BaseException:
            for sender in self._senders.values():
                release = getattr(sender.backend, "release", None)
                if release is not None:
                    release(self)
            raise
        self._ai_component = self._register_decorator(TASK, AI)
        extend(self)

    @classmethod
    def create(
        cls,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | None = None,
    ) -> Creation[WorkflowEngine]:
        """Make an engine: await it, or enter it by `async with`.

        Args:
            backend: A backend, or a list of them, the default first.
            dry_run: Run nothing; tasks give stand-ins.
            implicit_data: Link data between dependent tasks, on backends that do.
            uid: Name of the engine; made where None.
            work_dir: Captured output goes to `<work_dir>/<uid>/`; the current directory where
                None.

        Returns:
            The engine, once awaited or entered.
        """
        return Creation(super().create(backend, dry_run, implicit_data, uid, work_dir))

    async def __aenter__(self) -> WorkflowEngine:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    def _attach_backend(self, backend: Any) -> None:
        if isinstance(backend, type) or not hasattr(backend, "submit_tasks"):
            raise ConfigurationError(
                f"a backend is wanted, not {backend!r}; make one, such as "
                "ConcurrentExecutionBackend()"
            )
        if backend.name in self._senders:
            raise ConfigurationError(
                f"two backends are named '{backend.name}'; give one of them another name=..."
            )
        super()._attach_backend(backend)
        self._senders[backend.name] = Sender(
            backend, self.loop, self._on_sending, self._on_sent, self._on_send_error
        )

    def _register_decorator(
        self, comp_type: str, task_type: str | None = None
    ) -> Callable[..., Any]:
        return make_decorator(partial(self._register, comp_type, task_type or BLOCK))

    def _register(
        self,
        comp_type: str,
        kind: str,
        decorated: Decorated,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        specific: dict[str, Any],
        workflow_id: str | None,
    ) -> Component:
        if self._shutdown_event.is_set():
            raise RuntimeError(
                f"the workflow engine {self.uid} was shut down; make a new one to run "
                f"'{decorated.name}'"
            )
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"'{decorated.name}' was called in another thread than its engine's; call it there "
                "by loop.call_soon_threadsafe"
            )
        description = decorated.describe(
            kind,
            f"{comp_type}.{next(_uids):06d}",
            args,
            kwargs,
            specific,
            workflow_id or self._workflow_id_ctx.get(),
        )
        component = Component(
            self, self.loop, comp_type, kind, decorated.function, decorated.options, description
        )
        self._add(component)
        return component

    def _add(self, component: Component) -> None:
        description = component.description
        if description["args"] or description["kwargs"]:
            self._waiting.find(component)
        description["metadata"] = metadata(component)
        self.components[component.uid] = component
        self.dependencies[component.uid] = description["metadata"]["dependencies"]
        block = self._block.get()
        if block is not None and block.members is not None:
            block.members.add(component)
            component.add_done_callback(block.members.discard, context=self._context)
        if self._telemetry is not None:
            self._events.created(component)
        self._waiting.add(component)

    def _launch(self, component: Component) -> None:
        if self._telemetry is not None:
            self._events.resolved(component)
        if component.dependencies:
            if any(dependency.cancelled() for dependency in component.dependencies):
                self._end_cancelled(component)
                return
            failure = dependency_failure(component.name, component.dependencies)
            if failure is not None:
                self._fail(component, failure, again=False)
                return
            description = component.description
            description["args"], description["kwargs"] = with_values(component.arguments)
        if component.kind == FUNCTION:
            self._queue(component)
        elif component.runs_here:
            self._jobs.start(component, self._bodies.run(component))
            if component.kind == BLOCK:
                self._block_asyncio_tasks[component.uid] = component.job
        else:
            component.stage = Stage.PREPARING
            self._attempts.start_timer(component)
            self._jobs.start(component, self._bodies.prepare(component))

    def _queue(self, component: Component) -> None:
        name = component.options.backend or self._default_backend_name
        sender = self._senders.get(name)
        if sender is None:
            raise ConfigurationError(
                f"the engine has no backend '{name}' for '{component.name}'; it has "
                + ", ".join(f"'{known}'" for known in self._senders)
            )
        link_data(self, component)
        if component.attempt == component.options.retries:  # nothing needs them any more
            component.dependencies = component.arguments = ()
        if self._telemetry is not None:
            self._events.queued(component)
        sender.add(component)

    def _on_sending(self, batch: list[Component]) -> None:
        for component in batch:
            self.running.add(component.uid)
            if component.options.timeout is not None and component.timer is None:
                self._attempts.start_timer(component)
            if self._telemetry is not None:
                self._events.submitted(component)

    def _on_sent(self, batch: list[Component]) -> None:
        for component in batch:
            if component.done():
                continue
            component.stage = Stage.SUBMITTED
            if component.cancelling:
                self._canceller.ask(component)

    def _on_send_error(self, batch: list[Component], error: BaseException) -> None:
        logger.error("a backend raised from submit_tasks", exc_info=error)
        for component in batch:
            self._fail(component, error)

    def _begin_body(self, component: Component) -> AbstractContextManager[Any]:
        component.stage = Stage.SUBMITTED
        component.state = "RUNNING"
        component.members = component.members or set()
        self._block.set(component)
        self._attempts.start_timer(component)
        if component.kind == BLOCK:
            self._workflow_id_ctx.set(component.uid)
        if self._telemetry is None:
            return nullcontext()
        if component.kind == BLOCK:
            span: AbstractContextManager[Any] = self._telemetry.span_scope(
                "block", {"asyncflow.workflow_id": component.uid}
            )
            return span
        self._events.taken(component)
        return nullcontext()

    def task_callbacks(
        self,
        task: Any,
        state: str,
        service_callback: Callable[..., Any] | None = None,
    ) -> None:
        """Take a task's state from its backend; unknown tasks and states are ignored."""
        if threading.get_ident() != self._thread:
            # A backend that reports from a thread of its own: nothing else would wake the loop.
            self.loop.call_soon_threadsafe(self.task_callbacks, task, state, service_callback)
            return
        states = self.task_states_map
        fields = task if isinstance(task, dict) else task.as_dict()
        component = self.components.get(fields["uid"])
        if component is None or (state != states.RUNNING and state not in states.terminal_states):
            logger.debug("ignored state %s of task %s", state, fields["uid"])
            return
        if service_callback is not None:
            service_callback(component, task, state)
        if state == states.RUNNING:
            component.state = "RUNNING"
            if self._telemetry is not None:
                self._events.started(component)
        elif state == states.DONE:
            self._succeed(component, fields)
        elif state == states.CANCELED:
            self._end_cancelled(component)
        else:
            self._fail(component, reported_error(fields))

    def _succeed(self, component: Component, fields: Any) -> None:
        if component.done():
            return
        key = "stdout" if component.kind in (EXECUTABLE, PROMPT) else "return_value"
        if key not in fields:
            error = RuntimeError(
                f"the backend reported '{component.name}' DONE without its '{key}'"
            )
            self._fail(component, error)
            return
        component.state = "DONE"
        component.set_result(fields[key])
        if self._telemetry is not None:
            self._events.ended("TaskCompleted", component)

    def _fail(self, component: Component, error: BaseException, again: bool = True) -> None:
        """Fail a component, or start its next attempt where it has one."""
        if component.done():
            return
        component.stop_timer()
        self.running.discard(component.uid)
        if component.abandoned:
            component.timed_out = False
            self._end_cancelled(component)
            return
        if again and component.attempt < component.options.retries:
            self._attempts.repeat(component)
            return
        component.state = "FAILED"
        component.set_exception(as_exception(error))
        if self._telemetry is not None:
            self._events.ended("TaskFailed", component, error_type=type(error).__name__)

    def cancel(self, component: Component, msg: Any) -> bool:
        """Cancel a component that has not ended; its future asks for this."""
        component.abandoned, component.timed_out = True, False
        component.cancel_message = msg
        self._canceller.cancel(component)
        return True

    def _sender_of(self, component: Component) -> Sender:
        return self._senders[component.options.backend or self._default_backend_name]

    def _end_cancelled(self, component: Component, again: bool = True) -> None:
        if component.done():
            return
        if component.timed_out:
            limit = component.options.timeout or 0.0
            self._fail(component, TaskTimeoutError(component.uid, limit), again)
            return
        component.state = "CANCELLED"
        component.cancel_now(component.cancel_message)
        if self._telemetry is not None:
            self._events.ended("TaskCanceled", component)

    def release(self, component: Component) -> None:
        """Forget a component that has ended; what only it needed ends with it."""
        if component.timer is not None:
            component.stop_timer()
        # Not here and now: blocks may be nested as deep as one likes.
        if component.job is not None:
            self.loop.call_soon(self._jobs.cancel, component.job, context=self._context)
            component.job = None
        if component.members and (component.cancelled() or component.timed_out):
            self.loop.call_soon(cancel_all, component.members, context=self._context)
        uid = component.uid
        self.components.pop(uid, None)
        self.dependencies.pop(uid, None)
        self.running.discard(uid)
        if component.kind == BLOCK:
            self._block_asyncio_tasks.pop(uid, None)

    def _setup_signal_handlers(self) -> None:
        signals.take(self)

    def on_signal(self, sig: Any) -> None:
        """Shut down; called for SIGHUP, SIGINT and SIGTERM."""
        logger.info("engine %s: shutting down after %s", self.uid, sig.name)
        self._begin_shutdown(skip_execution_backend=False)

    async def _start_async_components(self) -> None:
        """Start nothing: there is no loop to run."""

    async def run(self) -> None:
        """Wait for the shutdown: nothing here runs in a loop."""
        await self._shutdown_event.wait()

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel what is not done, and shut the backends down. Idempotent.

        Args:
            skip_execution_backend: Leave the backends running, for another owner.
        """
        await asyncio.shield(self._begin_shutdown(skip_execution_backend))

    def _begin_shutdown(self, skip_execution_backend: bool) -> asyncio.Task[None]:
        if self._closer is None:
            self._closer = self.loop.create_task(self._shut_down(skip_execution_backend))
        return self._closer

    async def _shut_down(self, skip_execution_backend: bool) -> None:
        self._shutdown_event.set()
        signals.give_back(self)
        for component in list(self.components.values()):
            if isinstance(component, Component):  # the dictionary is open to everybody
                component.timed_out = False
                self._end_cancelled(component)
        stops = [sender.stop(STOP_SECONDS) for sender in self._senders.values()]
        await asyncio.gather(*stops)
        await asyncio.sleep(0)  # bodies and members have been cancelled then
        await self._jobs.end(STOP_SECONDS)
        if not skip_execution_backend:
            ends = [sender.backend.shutdown() for sender in self._senders.values()]
            for error in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(error, BaseException):
                    logger.error("a backend did not shut down cleanly", exc_info=error)
