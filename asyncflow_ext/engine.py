"""AsyncFlow's engine, driven by events: what ends wakes what waits for it, and nothing polls."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import signals
from asyncflow_ext.ai_task import extend
from asyncflow_ext.bodies import make_text, set_command
from asyncflow_ext.cancelling import Canceller
from asyncflow_ext.component import Component, ComponentFuture, Stage
from asyncflow_ext.creation import Creation
from asyncflow_ext.data_links import link_data, metadata
from asyncflow_ext.decorators import Decorated, make_decorator
from asyncflow_ext.events import TaskEvents
from asyncflow_ext.failures import as_exception, dependency_failure, reported_error
from asyncflow_ext.futures import find_futures, with_values
from asyncflow_ext.sender import Sender
from asyncflow_ext.stock import check_stock
from rhapsody.api.errors import ConfigurationError, TaskTimeoutError

__all__ = ["WorkflowEngine"]

logger = logging.getLogger(__name__)

BLOCK, EXECUTABLE, FUNCTION, PROMPT = "block", "executable", "function", "prompt"
AI, TASK = "ai", "task"

STOP_SECONDS = 2.0
"""How long the bodies that run at the shutdown may take to end."""

RESULT_KEYS = ("exception", "exit_code", "return_value", "state", "stderr", "stdout")

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
        self._ready: list[Component] = []
        self._flush_due = False
        self._owned: set[asyncio.Task[Any]] = set()
        self._closer: asyncio.Task[None] | None = None
        if isinstance(backend, list) and not backend:
            raise ConfigurationError("the engine needs at least one backend, or dry_run=True")
        # What the engine does by itself runs in the context that it was made in, not in that of
        # whichever task happened to come first.
        self._context = copy_context()
        self._events = TaskEvents(self)
        self._on_done = self._release  # bound once, not for every task
        loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._canceller = Canceller(loop, self._sender_of, self._end_cancelled, self._own)
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
    ) -> ComponentFuture:
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
        future = ComponentFuture(loop=self.loop)
        number = f"{next(_uids):06d}"
        description = decorated.describe(
            kind,
            f"{comp_type}.{number}",
            args,
            kwargs,
            specific,
            workflow_id or self._workflow_id_ctx.get(),
        )
        future.id, future.state = number, "PENDING"
        setattr(future, comp_type, description)
        component = Component(
            self, comp_type, kind, decorated.function, decorated.options, description, future
        )
        self._add(component)
        return future

    def _add(self, component: Component) -> None:
        future, description = component.future, component.description
        if description["args"] or description["kwargs"]:
            arguments = (description["args"], description["kwargs"])
            component.dependencies = find_futures(arguments)
            for dependency in component.dependencies:
                if dependency.get_loop() is not self.loop:
                    raise RuntimeError(
                        f"an argument of '{component.name}' is a future of another event loop; "
                        "await it there and pass its value"
                    )
        description["metadata"] = metadata(component)
        self.components[component.uid] = component
        self.dependencies[component.uid] = description["metadata"]["dependencies"]
        future.component = component
        future.add_done_callback(self._on_done, context=self._context)
        block = self._block.get()
        if block is not None and not block.future.done():
            assert block.members is not None
            block.members.add(future)
            future.add_done_callback(block.members.discard, context=self._context)
        self._events.created(component)
        for dependency in component.dependencies:
            if not dependency.done():
                component.waiting += 1
                dependency.add_done_callback(
                    partial(self._on_dependency, component), context=self._context
                )
        if not component.waiting:
            self._make_ready(component)

    def _on_dependency(self, component: Component, dependency: asyncio.Future[Any]) -> None:
        component.waiting -= 1
        if dependency.cancelled():
            self._end_cancelled(component)
        elif not component.waiting:
            self._make_ready(component)

    def _make_ready(self, component: Component) -> None:
        self._events.resolved(component)
        self._ready.append(component)
        if not self._flush_due:
            self.loop.call_soon(self._flush, context=self._context)
            self._flush_due = True

    def _flush(self) -> None:
        """Launch what became ready in this pass."""
        self._flush_due = False
        ready, self._ready = self._ready, []
        for component in ready:
            if component.future.done():
                continue
            try:
                self._launch(component)
            except Exception as error:
                self._fail(component, error)

    def _launch(self, component: Component) -> None:
        description = component.description
        if any(dependency.cancelled() for dependency in component.dependencies):
            self._end_cancelled(component)
            return
        failure = dependency_failure(component.name, component.dependencies)
        if failure is not None:
            self._fail(component, failure, again=False)
            return
        arguments = (description["args"], description["kwargs"])
        if component.dependencies:
            description["args"], description["kwargs"] = with_values(arguments)
        if component.kind == FUNCTION:
            self._queue(component)
        elif component.runs_here:
            self._start(component, self._run_here(component))
        else:
            component.stage = Stage.PREPARING
            self._start_timer(component)
            self._start(component, self._prepare(component, arguments))

    def _start(self, component: Component, body: Coroutine[Any, Any, None]) -> None:
        """Run a body on the caller's loop, in the context of the call."""
        assert component.context is not None
        # Not `create_task`, which may run the body before there is a job to speak of.
        component.job = component.context.run(partial(asyncio.Task, body, loop=self.loop))
        if component.kind == BLOCK:
            self._block_asyncio_tasks[component.uid] = component.job

    async def _prepare(self, component: Component, arguments: tuple[Any, Any]) -> None:
        """Have the body of an executable or a prompt task make its command or prompt."""
        try:
            text = await make_text(component, arguments)
            if component.kind == PROMPT:
                component.description[PROMPT] = text
            else:
                set_command(component, text)
            if component.job is asyncio.current_task():  # else it was stopped and took no notice
                self._queue(component)
        except asyncio.CancelledError:  # ours, or of something that the body awaited
            if component.job is asyncio.current_task():
                self._end_cancelled(component)
            raise
        except BaseException as error:
            if component.job is asyncio.current_task():
                self._fail(component, error)
            _raise_exit(error)

    def _queue(self, component: Component) -> None:
        name = component.options.backend or self._default_backend_name
        sender = self._senders.get(name)
        if sender is None:
            raise ConfigurationError(
                f"the engine has no backend '{name}' for '{component.name}'; it has "
                + ", ".join(f"'{known}'" for known in self._senders)
            )
        link_data(self, component)
        component.dependencies = ()
        self._events.queued(component)
        sender.add(component)

    def _on_sending(self, batch: list[Component]) -> None:
        for component in batch:
            self.running.add(component.uid)
            if component.timer is None:
                self._start_timer(component)
            self._events.submitted(component)

    def _on_sent(self, batch: list[Component]) -> None:
        for component in batch:
            if component.future.done():
                continue
            component.stage = Stage.SUBMITTED
            if component.cancelling:
                self._canceller.ask(component)

    def _on_send_error(self, batch: list[Component], error: BaseException) -> None:
        logger.error("a backend raised from submit_tasks", exc_info=error)
        for component in batch:
            self._fail(component, error)

    async def _run_here(self, component: Component) -> None:
        """Run the body of a block or of an AI task, which waits for its backend itself."""
        description = component.description
        component.stage = Stage.SUBMITTED
        component.future.state = "RUNNING"
        component.members = component.members or set()
        self._block.set(component)
        if component.kind == BLOCK:
            self._workflow_id_ctx.set(component.uid)
        else:
            self._events.taken(component)
        self._start_timer(component)
        try:
            with self._span(component):
                value = await component.function(*description["args"], **description["kwargs"])
        except asyncio.CancelledError:
            self._end_cancelled(component)
            raise
        except BaseException as error:
            if component.timed_out:
                self._end_cancelled(component)
            else:
                self._fail(component, error)
            _raise_exit(error)
        else:
            if component.timed_out:
                self._end_cancelled(component)
            else:
                self._succeed(component, {"return_value": value})

    def _span(self, component: Component) -> Any:
        if self._telemetry is None or component.kind != BLOCK:
            return nullcontext()
        return self._telemetry.span_scope("block", {"asyncflow.workflow_id": component.uid})

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
            service_callback(component.future, task, state)
        if state == states.RUNNING:
            component.future.state = "RUNNING"
            self._events.started(component)
        elif state == states.DONE:
            self._succeed(component, fields)
        elif state == states.CANCELED:
            self._end_cancelled(component)
        else:
            self._fail(component, reported_error(fields))

    def _succeed(self, component: Component, fields: Any) -> None:
        if component.future.done():
            return
        key = "stdout" if component.kind in (EXECUTABLE, PROMPT) else "return_value"
        if key not in fields:
            error = RuntimeError(
                f"the backend reported '{component.name}' DONE without its '{key}'"
            )
            self._fail(component, error)
            return
        component.future.set_result(fields[key])
        component.future.state = "DONE"
        self._events.ended("TaskCompleted", component)

    def _fail(self, component: Component, error: BaseException, again: bool = True) -> None:
        """Fail a component, or start its next attempt where it has one."""
        if component.future.done():
            return
        component.stop_timer()
        self.running.discard(component.uid)
        if component.abandoned:
            component.timed_out = False
            self._end_cancelled(component)
            return
        if again and component.attempt < component.options.retries:
            self._try_again(component)
            return
        component.future.set_exception(as_exception(error))
        component.future.state = "FAILED"
        self._events.ended("TaskFailed", component, error_type=type(error).__name__)

    def _try_again(self, component: Component) -> None:
        self._stop_job(component)
        self._cancel_members(component)
        pause = component.options.backoff * 2.0 ** min(component.attempt, 30)
        component.attempt += 1
        component.stage = Stage.WAITING
        component.timed_out = component.cancelling = False
        for key in RESULT_KEYS:
            component.description.pop(key, None)
        component.timer = self.loop.call_later(
            pause, self._make_ready, component, context=self._context
        )

    def _start_timer(self, component: Component) -> None:
        limit = component.options.timeout
        if limit is not None:
            component.timer = self.loop.call_later(
                limit, self._on_timeout, component, context=self._context
            )

    def _on_timeout(self, component: Component) -> None:
        component.timed_out = True
        if component.runs_here and component.job is not None:
            # Its end is the attempt's end; a body that takes no notice is not waited for.
            component.job.cancel()
            component.timer = self.loop.call_later(
                STOP_SECONDS, self._end_cancelled, component, False, context=self._context
            )
        else:
            self._stop_job(component)
            self._canceller.cancel(component)

    def cancel(self, component: Component, msg: Any) -> bool:
        """Cancel a component that has not ended; its future asks for this."""
        component.abandoned, component.timed_out = True, False
        component.cancel_message = msg
        self._canceller.cancel(component)
        return True

    def _sender_of(self, component: Component) -> Sender:
        return self._senders[component.options.backend or self._default_backend_name]

    def _own(self, task: asyncio.Task[None]) -> None:
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)

    def _end_cancelled(self, component: Component, again: bool = True) -> None:
        if component.future.done():
            return
        if component.timed_out:
            limit = component.options.timeout or 0.0
            self._fail(component, TaskTimeoutError(component.uid, limit), again)
            return
        component.future.cancel_now(component.cancel_message)
        component.future.state = "CANCELLED"
        self._events.ended("TaskCanceled", component)

    def _release(self, future: ComponentFuture) -> None:
        """Forget a component that is done; what only it needed ends with it."""
        component, future.component = future.component, None
        assert component is not None
        component.stop_timer()
        self._stop_job(component)
        if future.cancelled() or component.timed_out:
            self._cancel_members(component)
        uid = component.uid
        self.components.pop(uid, None)
        self.dependencies.pop(uid, None)
        self.running.discard(uid)
        self._block_asyncio_tasks.pop(uid, None)

    def _cancel_members(self, component: Component) -> None:
        for member in list(component.members or ()):
            member.cancel()

    def _stop_job(self, component: Component) -> None:
        job, component.job = component.job, None
        if job is not None and not job.done() and job is not asyncio.current_task():
            job.cancel()
            self._own(job)

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
        await asyncio.sleep(0)  # what was cancelled has been released then
        await self._end_owned()
        if not skip_execution_backend:
            ends = [sender.backend.shutdown() for sender in self._senders.values()]
            for error in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(error, BaseException):
                    logger.error("a backend did not shut down cleanly", exc_info=error)

    async def _end_owned(self) -> None:
        owned = set(self._owned)
        if not owned:
            return
        for task in owned:
            task.cancel()
        _, left = await asyncio.wait(owned, timeout=STOP_SECONDS)
        for task in left:
            logger.warning("%s goes on after it was cancelled", task)


def _raise_exit(error: BaseException) -> None:
    """Let what is to end the program go on; its task has been failed with it."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
