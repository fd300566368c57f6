"""Scheduling: components that wait for dependencies, and the queue of each backend."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from asyncflow_ext.arguments import find_in_call, is_tolerated
from asyncflow_ext.component import Component, Event, KeptComponent
from asyncflow_ext.execution import OwnedTasks
from rhapsody.errors import BackendInUseError, TaskTimeoutError

__all__ = ["BackendQueue", "ReadyQueue"]

logger = logging.getLogger(__name__)

MOST_PER_PASS = 250
"""Components that are launched or submitted in one pass of the loop, which is held meanwhile."""

MOST_EDGES_PER_PASS = 1000
"""Dependents that learn of the end of a dependency in one pass of the loop."""


class ReadyQueue:
    """Launches components when their dependencies are done.

    Components that become ready in one pass of the loop are launched together.

    Args:
        loop: The engine's loop.
        context: The context in which callbacks run.
        takes_kept: Returns whether a component takes a result that the backend of another one
            keeps.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        takes_kept: Callable[[Component, KeptComponent], bool],
    ) -> None:
        self._takes_kept = takes_kept
        self._loop = loop
        self._context = context
        self._ready: deque[Component] = deque()
        self._ended: deque[Component] = deque()  # whose dependents are not resolved
        self._is_due = False

    def find_dependencies(self, component: Component) -> None:
        """Set the dependencies of a component: the futures among its arguments.

        Raises:
            RuntimeError: One of them belongs to another event loop.
            TypeError: An argument is a coroutine, or a container that cannot be copied.
        """
        description = component.description
        args, kwargs = description["args"], description["kwargs"]
        try:
            found, component.dependencies = find_in_call(args, kwargs)
        except TypeError as error:
            raise TypeError(f"cannot call '{component.name}': {error}") from error
        if component.dependencies:
            component.arguments = found
        else:  # changed by `allow_failures` without futures
            description["args"], description["kwargs"] = found
        for dependency in component.dependencies:
            if dependency.get_loop() is not self._loop:
                raise RuntimeError(
                    f"an argument of '{component.name}' is a future of another event loop; "
                    "await it there and pass its value"
                )

    def add(self, component: Component) -> None:
        """Launch a component when its dependencies are done."""
        for dependency in component.dependencies:
            if type(dependency) is KeptComponent and self._takes_kept(component, dependency):
                continue
            if dependency.done():
                continue
            component.waiting += 1
            if isinstance(dependency, Component) and dependency.machine is component.machine:
                # A done callback would cost several objects, and a call by the loop.
                if dependency.dependents is None:
                    dependency.dependents = [component]
                else:
                    dependency.dependents.append(component)
            else:
                dependency.add_done_callback(
                    partial(self._on_dependency, component), context=self._context
                )
        if not component.waiting:
            self.launch_soon(component)

    def _on_dependency(self, component: Component, dependency: asyncio.Future[Any]) -> None:
        component.waiting -= 1
        if dependency.cancelled() and not is_tolerated(dependency, component.dependencies):
            component.handle(Event.ABANDON)
        elif not component.waiting:
            self.launch_soon(component)

    def resolve_kept(self, dependency: Component, dependents: Sequence[Component]) -> None:
        """Launch components that take a result which their backend keeps."""
        for component in dependents:
            self._on_dependency(component, dependency)

    def launch_soon(self, component: Component) -> None:
        """Launch a component in the next pass of the loop."""
        self._ready.append(component)
        self._run_soon()

    def resolve_soon(self, dependency: Component) -> None:
        """Launch or abandon the dependents of a component that ended, in the next pass."""
        if dependency.dependents is None:
            return
        if self._loop.is_closed():  # the engine's shutdown abandons them
            dependency.dependents = None
            return
        dependency.dependents.reverse()  # they are taken from the end
        self._ended.append(dependency)
        self._run_soon()

    def _run_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._run, context=self._context)

    def _run(self) -> None:
        # Components that end meanwhile only join the queue: a chain of cancelled components may be
        # longer than the recursion limit.
        try:
            self._resolve_dependents()
            self._launch_ready()
        finally:
            self._is_due = False
            if self._ended or self._ready:
                self._run_soon()

    def _resolve_dependents(self) -> None:
        ended = self._ended
        for _ in range(MOST_EDGES_PER_PASS):
            if not ended:
                return
            dependency = ended[0]
            dependents = dependency.dependents
            assert dependents
            component = dependents.pop()
            if not dependents:
                dependency.dependents = None
                ended.popleft()
            self._on_dependency(component, dependency)

    def _launch_ready(self) -> None:
        for component in _first_of(self._ready):
            machine = component.machine
            if machine is None:  # the component has ended
                continue
            try:
                machine.launch(component)
            except Exception as error:
                component.handle(Event.FAIL, error)


class BackendQueue:
    """The queue of tasks for one backend.

    The backend gets one call of `submit_tasks` at a time, with all queued tasks. Each backend has
    its own queue, so a backend that is slow to accept tasks does not delay the others.

    Args:
        backend: The backend.
        loop: The engine's loop.
        tasks: Owns the asyncio tasks that call `cancel_task`.
        reattach: Attaches the engine again if another owner had the backend meanwhile. None: the
            backend does not check its owner.

    Attributes:
        reports_running: Whether the backend reports the start of every function and executable.
        carries_contexts: Whether the backend runs functions in the context of their calls.
        keeps_history: Whether the backend records its tasks, and does not count attempts.
        keeps_results: Whether the backend may keep large results until they are fetched.
    """

    def __init__(
        self,
        backend: Any,
        loop: asyncio.AbstractEventLoop,
        tasks: OwnedTasks,
        reattach: Callable[[], None] | None = None,
    ) -> None:
        self.backend = backend
        # Optional in the protocol (C18): a backend that says nothing may never report RUNNING.
        self.reports_running = bool(getattr(backend, "reports_running", False))
        self.carries_contexts = bool(getattr(backend, "carries_contexts", False))
        self.keeps_history = hasattr(backend, "active_records")
        self.keeps_results = bool(getattr(backend, "keeps_results", False))
        self._time_out = getattr(backend, "time_out_task", None)
        self._reattach = reattach
        self._loop = loop
        self._tasks = tasks
        self._stopping = False
        self._queued: dict[str, Component] = {}
        self._given_up: dict[str, TaskTimeoutError | None] = {}
        self._job: asyncio.Task[None] | None = None

    def add(self, component: Component) -> None:
        """Queue a component; all components of one pass of the loop are submitted together."""
        self._queued[component.uid] = component
        if self._job is None:
            # `create_task` might start it eagerly, and submit the first component alone.
            self._job = asyncio.Task(self._submit_all(), loop=self._loop)

    async def _submit_all(self) -> None:
        try:
            while self._queued:
                queued, self._queued = deque(self._queued.values()), {}
                while queued:
                    await self._submit_some(_first_of(queued))
                    if queued:
                        await asyncio.sleep(0)
        finally:
            self._job = None

    async def _submit_some(self, queued: list[Component]) -> None:
        event = Event.SUBMIT  # refused by components that ended or timed out in the queue
        batch = [component for component in queued if component.handle(event)]
        if batch:
            await self._submit(batch)

    async def _submit(self, batch: list[Component]) -> None:
        try:
            if self._reattach is not None:
                self._reattach()
        except BackendInUseError as error:
            for component in batch:
                component.handle(Event.REJECT, error)
            return
        try:
            await self.backend.submit_tasks([c.description for c in batch])
        except BaseException as error:
            if self._stopping:
                raise
            logger.error("backend '%s' raised from submit_tasks", self.backend.name, exc_info=error)
            for component in batch:
                component.handle(Event.REJECT, error)
            self._given_up.clear()
        else:
            event = Event.ACCEPT
            for component in batch:
                component.handle(event)
            if self._given_up:
                for component in batch:
                    if component.uid in self._given_up:
                        self._stop(component, self._given_up[component.uid])
                self._given_up.clear()

    def stop_when_accepted(
        self, component: Component, error: TaskTimeoutError | None = None
    ) -> None:
        """Ask the backend to stop a component that ended before its `submit_tasks` returned."""
        self._given_up[component.uid] = error

    def withdraw(self, component: Component) -> None:
        """Do not submit a component that is queued."""
        self._queued.pop(component.uid, None)

    def cancel(self, component: Component) -> None:
        """Ask the backend to stop a component; give up if it refuses."""
        self._stop(component, None)

    def time_out(self, component: Component, error: TaskTimeoutError) -> None:
        """Ask the backend to stop a component that took too long; give up if it refuses."""
        self._stop(component, error)

    def _stop(self, component: Component, error: TaskTimeoutError | None) -> None:
        self._tasks.add(asyncio.Task(self._ask_to_stop(component, error), loop=self._loop))

    async def _ask_to_stop(self, component: Component, error: TaskTimeoutError | None) -> None:
        attempt = component.attempt
        try:
            if error is None or self._time_out is None:
                confirmed = await self.backend.cancel_task(component.uid)
            else:
                confirmed = await self._time_out(component.uid, error)
        except Exception:
            logger.exception("backend '%s' raised when it was to stop a task", self.backend.name)
            confirmed = False
        if confirmed is False and component.attempt == attempt:
            component.handle(Event.GIVE_UP)

    async def stop(self, seconds: float) -> None:
        """Submit nothing more, and wait for the call in progress, which is cancelled.

        Args:
            seconds: Longest wait; a call that ignores its cancellation keeps running.
        """
        self._stopping = True
        self._queued.clear()
        if self._job is not None and self._loop is asyncio.get_running_loop():
            self._job.cancel()
            await asyncio.wait([self._job], timeout=seconds)


def _first_of(components: deque[Component]) -> list[Component]:
    """Remove and return the first components, at most `MOST_PER_PASS`."""
    return [components.popleft() for _ in range(min(len(components), MOST_PER_PASS))]
