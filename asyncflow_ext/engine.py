"""The event-driven workflow engine: an event starts every step, and nothing polls."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.ai_task import extend
from asyncflow_ext.compat import (
    Components,
    Creation,
    Dependencies,
    Resolved,
    Running,
    check_stock,
)
from asyncflow_ext.component import (
    AI,
    BLOCK,
    EXECUTABLE,
    FUNCTION,
    PROMPT,
    TASK,
    Component,
    Event,
    Options,
    loop_error,
)
from asyncflow_ext.data_links import metadata
from asyncflow_ext.decorators import Decorated, make_decorator
from asyncflow_ext.failures import reported_error
from asyncflow_ext.graph import ComponentGraph
from asyncflow_ext.recovery.journal import ComponentJournal
from asyncflow_ext.recovery.walltime import EngineWalltime
from asyncflow_ext.report import flow_page, page_source
from asyncflow_ext.scheduling import BackendQueue
from asyncflow_ext.state_machine import STOP_SECONDS, StateMachine
from rhapsody.api.tasks.fields import check_folder_uid
from rhapsody.backends.core.history import STATES
from rhapsody.backends.core.html import as_html, state_cells
from rhapsody.backends.protocol import (
    REPORTED_STATES,
    Attempt,
    KeptResult,
    TaskStates,
    main_state,
)
from rhapsody.errors import ConfigurationError, EngineError, JournalError, WalltimeReached
from rhapsody.garbage import watch_tasks
from rhapsody.journal.recorder import Journal, open_journal
from rhapsody.report.notebook import in_notebook
from rhapsody.report.runs import runs_of
from rhapsody.suggest import suggest_parameters
from rhapsody.validation import checked_path
from rhapsody.walltime import check_walltime, find_end, signals

if TYPE_CHECKING:
    from rhapsody.report.live_page import LivePage

__all__ = ["WorkflowEngine"]

logger = logging.getLogger(__name__)

START, SUCCEED = Event.START, Event.SUCCEED
"""Constants, since `Event.SUCCEED` takes 60 ns in Python 3.11, for each task."""

_uids = count(1)  # shared by all engines of the process, so that no uid occurs twice


class WorkflowEngine(StockEngine):  # type: ignore[misc]
    """A drop-in replacement for the engine of `radical.asyncflow`; only the import changes.

    Create an engine with `flow = await WorkflowEngine.create(backend=...)`, or with
    `async with WorkflowEngine.create(backend=...) as flow`, which also shuts it down. Unlike the
    stock engine it has the decorator `ai_task`, and every decorator accepts `retries=`,
    `backoff=`, `timeout=` and `priority=`; those of functions and executables accept `resources=`.

    Raises:
        ConfigurationError: Two backends have the same name.
        BackendInUseError: A backend belongs to another open engine or session.
        ImportError: The installed AsyncFlow differs from the supported version.
    """

    def __init__(
        self,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        journal: Journal | None = None,
    ) -> None:
        check_stock()
        self.journal = journal
        self._closer: asyncio.Task[None] | None = None
        self._end_reported = False  # to a component, by `_end_run`
        if isinstance(backend, list) and not backend:
            raise ConfigurationError("the engine needs at least one backend, or dry_run=True")
        if uid:
            check_folder_uid(uid)
        # The engine's callbacks run in the context of its creation. Otherwise each would run in
        # the context of the call that happened to schedule it.
        self._context = copy_context()
        self._thread = threading.get_ident()
        self._carries_contexts = False
        self._graph = ComponentGraph()
        self._pages: list[LivePage] = []
        self._machine = machine = StateMachine(self, asyncio.get_running_loop(), self._context)
        if journal is not None:
            machine.journal = ComponentJournal(journal, machine.tasks, machine.enqueue)
            journal.on_failure = self._end_run
        try:
            folder = None if work_dir is None else checked_path("work_dir", work_dir)
            super().__init__(backend, dry_run, implicit_data, uid, folder)
        except BaseException:
            for queue in self._machine.queues.values():
                detach = getattr(queue.backend, "detach", None)
                if detach is not None:
                    detach(self)
            raise
        self.components = self._components = Components()
        self.resolved = Resolved(self._components)
        self.running = Running(self._components)
        self.dependencies = Dependencies(self._components)
        watch_tasks(self._components, Components.count_active)
        self._ai_component = self._register_decorator(TASK, AI)
        extend(self)

    @classmethod
    @suggest_parameters
    def create(
        cls,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        journal: str | os.PathLike[str] | None = None,
        journal_required: bool = False,
        walltime: float | None = None,
        walltime_margin: float = 60.0,
    ) -> Creation[WorkflowEngine]:
        """Create an engine; await the result, or enter it with `async with`.

        Args:
            backend: A backend, or a list of backends; the first is the default.
            dry_run: Run no task; every task returns a placeholder.
            implicit_data: Link data between dependent tasks, if the backend supports it.
            uid: Name of the engine. None: a generated name.
            work_dir: Captured output goes to `<work_dir>/<uid>/`. None: the current directory.
            journal: File of the journal, which is created if it does not exist. The results of
                finished tasks are kept there, and a later run of the program does not repeat
                them. None: no journal. In a dry run it is not used.
            journal_required: Shut the engine down if the journal cannot be written any more.
                False: continue without it, with a warning.
            walltime: Seconds after which the batch job of the program ends, if the batch system
                does not say. The walltime is observed if this or `journal` is given.
            walltime_margin: Seconds before the end of the walltime, or after SIGTERM or SIGUSR1,
                in which running tasks may finish and no new ones are started. What is left then
                raises `WalltimeReached`.

        Returns:
            The engine, when awaited or entered.

        Raises:
            ConfigurationError: `walltime` or `walltime_margin` is not a number of seconds.
            JournalError: The journal cannot be used, for example because another program uses it.
        """
        check_walltime(walltime, walltime_margin)
        created = cls._create(
            backend, dry_run, implicit_data, uid, work_dir, journal, journal_required
        )
        if (journal is not None or walltime is not None) and not dry_run:
            created = cls._with_walltime(created, walltime, walltime_margin)
        return Creation(created)

    @classmethod
    async def _with_walltime(
        cls,
        created: Coroutine[Any, Any, WorkflowEngine],
        walltime: float | None,
        margin: float,
    ) -> WorkflowEngine:
        engine: WorkflowEngine = await created
        end = await engine.loop.run_in_executor(None, find_end, walltime)
        guard = EngineWalltime(engine._components.active.values, margin, engine._end_run)
        guard.start(engine.loop, end)
        engine._machine.walltime = guard
        signals.add_owner(engine, signal.SIGUSR1)
        return engine

    @classmethod
    async def _create(
        cls,
        backend: Any,
        dry_run: bool,
        implicit_data: bool,
        uid: str | None,
        work_dir: str | os.PathLike[str] | None,
        journal: str | os.PathLike[str] | None,
        journal_required: bool,
    ) -> WorkflowEngine:
        opened = None
        if journal is not None and not dry_run:
            opened = await open_journal(journal, journal_required)
        try:
            backends = await cls._setup_execution_backend(backend, dry_run)
            engine = cls(backends, dry_run, implicit_data, uid, work_dir, opened)
            await engine._start_async_components()
            if os.environ.get("RHAPSODY_PAGE"):
                engine._serve_if_wanted()
        except BaseException:
            if opened is not None:
                await opened.close()
            raise
        return engine

    def _serve_if_wanted(self) -> None:
        from rhapsody.report.live_page import serve_if_wanted

        if (page := serve_if_wanted(self, page_source(self))) is not None:
            self._pages.append(page)

    def serve_page(self, port: int = 0, title: str | None = None) -> LivePage:
        """Serve the report as a live page, at an address of this machine with a secret in it.

        Works also while the program is busy. The page costs nothing while nobody looks at it. The
        shutdown shows the last state in open pages, and then stops the server.

        Args:
            port: The port at 127.0.0.1. 0: a free one.
            title: Heading of the page. None: the engine's uid.

        Returns:
            The page: print its `url`. `close()` closes it.

        Raises:
            EngineError: The engine was shut down.
            ConfigurationError: No backend of the engine keeps a history. Rhapsody's backends do.
            ResourceError: The port is in use.
        """
        if self._shutdown_event.is_set():
            raise EngineError(f"the workflow engine {self.uid} was shut down; create a new one")
        page = flow_page(self, port, title)
        self._pages.append(page)
        return page

    async def __aenter__(self) -> WorkflowEngine:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    def _repr_html_(self) -> str:
        """Return the engine for a notebook: its backends, and their tasks by state."""
        state = "shut down" if self._shutdown_event.is_set() else "open"
        facts = {"uid": self.uid, "state": state, "active components": len(self._components.active)}
        rows = [["backend", *(name.lower() for name in STATES)]]
        backends = [queue.backend for queue in self._machine.queues.values()]
        rows += [[run.name, *state_cells(run.history.counts)] for run in runs_of(backends)]
        return as_html("WorkflowEngine", facts, rows)

    def _attach_backend(self, backend: Any) -> None:
        if isinstance(backend, type) or not hasattr(backend, "submit_tasks"):
            raise ConfigurationError(
                f"'backend' must be a backend, got {backend!r}; create one, for example "
                "ConcurrentExecutionBackend()"
            )
        machine = self._machine
        if backend.name in machine.queues:
            raise ConfigurationError(
                f"two backends are named '{backend.name}'; give one of them another name"
            )
        work_dir = os.path.join(self.work_dir, self.uid)
        existed = os.path.isdir(work_dir)
        super()._attach_backend(backend)  # which creates the folder
        # Rhapsody's backends create it for their first file; others may rely on it.
        if not existed and type(backend).__module__.startswith("rhapsody.backends."):
            with suppress(OSError):
                os.rmdir(work_dir)
        reattach = getattr(backend, "reattach", None)
        if reattach is not None:
            reattach = partial(reattach, self.task_callbacks, work_dir)
        self._carries_contexts |= getattr(backend, "carries_contexts", False)
        machine.queues[backend.name] = BackendQueue(backend, self.loop, machine.tasks, reattach)

    def _register_decorator(
        self, comp_type: str, task_type: str | None = None
    ) -> Callable[..., Any]:
        kind = task_type or BLOCK
        return make_decorator(
            partial(self._register, comp_type, kind),
            partial(self._check_options, kind),
            takes_resources=kind in (FUNCTION, EXECUTABLE),
            takes_sync=kind != BLOCK,
        )

    def _check_options(self, kind: str, options: Options) -> None:
        """Refuse a `queue_timeout` that cannot be kept.

        Raises:
            TypeError: Components of this kind wait in no queue, or their timeout includes it.
            ConfigurationError: The backend does not report when a task starts.
        """
        if options.queue_timeout is None:
            return
        if kind == BLOCK:
            raise TypeError("a block has no 'queue_timeout', since it starts at once")
        if kind not in (FUNCTION, EXECUTABLE):
            raise TypeError(
                "a prompt has no 'queue_timeout'; its 'timeout' includes the time in the queue"
            )
        name = options.backend or self._default_backend_name
        queue = self._machine.queues.get(name)
        if queue is not None and not queue.reports_running and not self.dry_run:
            raise ConfigurationError(
                f"backend '{name}' does not report when a task starts, so 'queue_timeout' cannot "
                "limit its wait; use 'timeout'"
            )

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
            guard = self._machine.walltime
            if guard is not None and guard.reached is not None:
                raise guard.reached
            raise EngineError(
                f"the workflow engine {self.uid} was shut down; create a new one to run "
                f"'{decorated.name}'"
            )
        self._check_loop(f"'{decorated.name}'", "called")
        description = decorated.describe(
            kind,
            f"{comp_type}.{next(_uids):06d}",
            args,
            kwargs,
            specific,
            workflow_id or self._workflow_id_ctx.get(),
        )
        component = Component(
            self._machine,
            self.loop,
            kind,
            decorated.function,
            decorated.options,
            description,
        )
        if self._carries_contexts and kind == FUNCTION:
            context = copy_context()
            if context or self._context:  # most programs have no variables
                component.context = context
        self._add(component)
        return component

    def _check_loop(self, what: str, use: str) -> None:
        """Check that the running loop is the engine's, or that no loop runs in its thread.

        Raises:
            EngineError: The engine's loop is closed, another loop runs, or this is another thread.
        """
        in_its_thread = threading.get_ident() == self._thread
        if in_its_thread and self.loop.is_running():
            return  # faster than `get_running_loop`, which asks for the process id
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self.loop:
            return
        if not self.loop.is_closed() and not in_its_thread:
            raise EngineError(
                f"{what} must be {use} in the thread of its engine; to call tasks "
                "inside a task, decorate it with @flow.block, which runs in that thread; from "
                "another thread use loop.call_soon_threadsafe"
            )
        if running is not None or self.loop.is_closed():
            raise loop_error(f"{what} cannot be {use} here", self.loop)

    def _add(self, component: Component) -> None:
        description = component.description
        machine = self._machine
        if description["args"] or description["kwargs"]:
            machine.ready.find_dependencies(component)
        description["metadata"] = metadata(component)
        self._components.active[component.uid] = component
        self._graph.created(component)
        block = machine.bodies.current.get()
        if block is not None and block.members is not None:
            block.members.add(component)
            component.siblings = block.members
        if self._telemetry is not None:
            machine.events.created(component)
        machine.ready.add(component)

    def _current_attempt(self) -> Attempt | None:
        """Return the attempt of the component whose body runs, if a failure is repeated."""
        component = self._machine.bodies.current.get()
        return component.current_attempt() if component is not None else None

    def _register_component(self, *_: Any, **__: Any) -> Component:
        raise RuntimeError(
            "asyncflow_ext.WorkflowEngine has no _register_component, which is internal to "
            "AsyncFlow's own engine; call a function decorated with function_task, "
            "executable_task, prompt_task or block"
        )

    def task_callbacks(
        self,
        task: Any,
        state: str,
        service_callback: Callable[..., Any] | None = None,
    ) -> None:
        """Handle the report of a backend; unknown tasks and states are ignored."""
        if threading.get_ident() != self._thread:
            # Calls from the backend's own thread do not wake the loop.
            with suppress(RuntimeError):  # the loop is closed, and nobody waits for the task
                self.loop.call_soon_threadsafe(self.task_callbacks, task, state, service_callback)
            return
        fields = task if isinstance(task, dict) else task.as_dict()
        component = self._components.active.get(fields["uid"])
        reported: str | None = state
        if component is not None and state not in REPORTED_STATES:
            queue = component.queue
            reported = None if queue is None else main_state(queue.backend, state)
        if component is None or reported is None:
            logger.debug("ignored the state %s of task %s", state, fields["uid"])
            return
        if service_callback is not None:
            service_callback(component, task, state)
        if reported == TaskStates.DONE:
            key = "stdout" if component.kind in (EXECUTABLE, PROMPT) else "return_value"
            machine = self._machine
            if key in fields:
                value = fields[key]
                if type(value) is KeptResult:
                    machine.handle(component, Event.KEEP, value)
                elif machine.journal is None or not machine.journal.hold(component, fields, value):
                    machine.handle(component, SUCCEED, value)
            else:
                message = f"the backend reported '{component.name}' DONE without its '{key}'"
                machine.handle(component, Event.FAIL, RuntimeError(message))
        elif reported == TaskStates.RUNNING:
            self._machine.handle(component, START)
        elif reported == TaskStates.CANCELED:
            guard = self._machine.walltime
            if guard is None or component not in guard.withdrawn:
                self._machine.handle(component, Event.STOP)
        else:
            self._machine.handle(component, Event.FAIL, reported_error(fields))

    def _setup_signal_handlers(self) -> None:
        signals.add_owner(self, signal.SIGHUP, signal.SIGTERM)
        if not in_notebook():  # there SIGINT interrupts the cell, and nothing else
            signals.add_owner(self, signal.SIGINT)

    def on_signal(self, sig: Any) -> None:
        """Shut down, after SIGTERM and SIGUSR1 in an orderly way if the walltime is observed."""
        guard = self._machine.walltime
        if (
            guard is not None
            and sig in (signal.SIGTERM, signal.SIGUSR1)
            and (guard.begin(f"of the signal {sig.name}") or sig == signal.SIGUSR1)
        ):
            return
        logger.info("engine %s shuts down after %s", self.uid, sig.name)
        self._begin_shutdown(skip_execution_backend=False)

    async def start_telemetry(self, *args: Any, **options: Any) -> Any:
        """Record events, spans and metrics of this engine's tasks; see the stock engine."""
        self._check_loop(f"the telemetry of engine {self.uid}", "started")
        return await super().start_telemetry(*args, **options)

    def _end_run(self, error: JournalError | WalltimeReached) -> None:
        """End all components with an error, and shut down."""
        for component in list(self._components.active.values()):
            if isinstance(component, Component):
                self._machine.handle(component, Event.END, error)
                self._end_reported = True
        self._begin_shutdown(skip_execution_backend=False)

    async def _start_async_components(self) -> None:
        """Do nothing: this engine has no scheduling loop to start."""

    async def run(self) -> None:
        """Wait for the shutdown; the stock engine runs its scheduling loop here."""
        self._check_loop(f"engine {self.uid}", "awaited")
        await self._shutdown_event.wait()

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel all unfinished tasks and blocks, then shut the backends down. Idempotent.

        It may be called on any event loop, also after the engine's own was closed.

        Args:
            skip_execution_backend: Keep the backends running for another owner.

        Raises:
            JournalError: A required journal could not be written when no component was left that
                could end with this error.
        """
        if self.loop.is_running() and threading.get_ident() != self._thread:
            there = self.shutdown(skip_execution_backend)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there, self.loop))
            return
        await asyncio.shield(self._begin_shutdown(skip_execution_backend))

    def _begin_shutdown(self, skip_execution_backend: bool) -> asyncio.Task[None]:
        closer = self._closer
        # The end of the loop on which it began may have cancelled it.
        if closer is None or (closer.get_loop() is not asyncio.get_running_loop()):
            coroutine = self._shut_down(skip_execution_backend)
            closer = self._closer = asyncio.get_running_loop().create_task(coroutine)
        return closer

    async def _shut_down(self, skip_execution_backend: bool) -> None:
        with suppress(RuntimeError):  # the engine's loop is closed, and `run` cannot be resumed
            self._shutdown_event.set()
        signals.remove_owner(self)
        for component in list(self._components.active.values()):
            if isinstance(component, Component):  # users may put other objects there
                self._machine.handle(component, Event.ABANDON)
        await self._machine.fetch_all_kept()
        queues = self._machine.queues.values()
        await asyncio.gather(*(queue.stop(STOP_SECONDS) for queue in queues))
        await asyncio.sleep(0)  # bodies and members are cancelled in this pass of the loop
        await self._machine.tasks.end(STOP_SECONDS)
        if not skip_execution_backend:
            ends = [queue.backend.shutdown() for queue in queues]
            for error in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(error, BaseException):
                    logger.error("a backend did not shut down cleanly", exc_info=error)
        await asyncio.gather(*(page.stop() for page in self._pages))
        if self._machine.walltime is not None:
            self._machine.walltime.stop()
        if self.journal is not None:
            await self.journal.close()
            if self.journal.required and self.journal.failure and not self._end_reported:
                raise self.journal.failure
