"""Execution on the caller's loop: blocks, AI tasks, and functions that return a command."""

from __future__ import annotations

import asyncio
import inspect
import logging
import shlex
from collections.abc import Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.component import BLOCK, EXECUTABLE, PROMPT, Component, Event
from rhapsody.api.tasks.formatted import refuse_formatted_tasks

__all__ = ["Bodies", "OwnedTasks", "cancel_all"]

logger = logging.getLogger(__name__)


class OwnedTasks:
    """The asyncio tasks that must end before their engine."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any]) -> None:
        """Own a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self, seconds: float) -> None:
        """Cancel the tasks and wait for them.

        Args:
            seconds: Longest wait; tasks that run longer are logged.
        """
        loop = asyncio.get_running_loop()  # the engine's own may be closed
        tasks = {task for task in self._tasks if task.get_loop() is loop}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        _, running = await asyncio.wait(tasks, timeout=seconds)
        for task in running:
            logger.warning("%s still runs %g s after its cancellation", task, seconds)


class Bodies:
    """Runs and stops the bodies of components, and sends events when they end.

    Args:
        engine: The engine.
        loop: The engine's loop.
        tasks: Owns the bodies that were stopped.

    Attributes:
        current: The component whose body runs in this context.
    """

    def __init__(
        self, engine: StockEngine, loop: asyncio.AbstractEventLoop, tasks: OwnedTasks
    ) -> None:
        self.current: ContextVar[Component | None] = ContextVar("current", default=None)
        self._engine = engine
        self._loop = loop
        self._tasks = tasks

    def start(self, component: Component) -> None:
        """Run the body of a block or an AI task."""
        self._start(component, self._run(component))

    def start_preparing(self, component: Component) -> None:
        """Call the function of an executable or a prompt task for its command or prompt."""
        self._start(component, self._prepare(component))

    def _start(self, component: Component, body: Coroutine[Any, Any, None]) -> None:
        assert component.context is not None
        # `create_task` might run the body eagerly, before `component.job` is set.
        component.job = component.context.run(partial(asyncio.Task, body, loop=self._loop))

    def stop(self, component: Component) -> None:
        """Cancel a component's body, if one runs."""
        job, component.job = component.job, None
        if job is not None:
            self._cancel(job)

    def stop_soon(self, component: Component) -> None:
        """Cancel a component's body in the next pass of the loop.

        A direct call would exceed the recursion limit in deeply nested blocks.
        """
        job, component.job = component.job, None
        if job is not None and not self._loop.is_closed():
            self._loop.call_soon(self._cancel, job)

    def _cancel(self, job: asyncio.Task[Any]) -> None:
        if not job.done() and job is not asyncio.current_task():
            job.cancel()
            self._tasks.add(job)

    async def _run(self, component: Component) -> None:
        description = component.description
        if not component.handle(Event.RUN):
            return
        try:
            with self._scope(component):
                value = await component.function(*description["args"], **description["kwargs"])
        except asyncio.CancelledError:
            component.handle(Event.STOP)
            raise
        except BaseException as error:
            component.handle(Event.FAIL, error)
            _raise_exit(error)
        else:
            component.handle(Event.SUCCEED, value)

    def _scope(self, component: Component) -> AbstractContextManager[Any]:
        """Set the context variables of a body, and return the span around it."""
        self.current.set(component)
        if component.kind != BLOCK:
            return nullcontext()
        self._engine._workflow_id_ctx.set(component.uid)
        if self._engine._telemetry is None:
            return nullcontext()
        attributes = {"asyncflow.workflow_id": component.uid}
        span: AbstractContextManager[Any] = self._engine._telemetry.span_scope("block", attributes)
        return span

    async def _prepare(self, component: Component) -> None:
        try:
            text = await _make_text(component)
            refuse_formatted_tasks(component.name, text, self._engine.components.__contains__)
            if component.kind == PROMPT:
                component.description["prompt"] = text
            else:
                _set_command(component, text)
            if _is_current(component):
                component.handle(Event.QUEUE)
        except asyncio.CancelledError:  # this task was cancelled, or a future that it awaited
            if _is_current(component):
                component.handle(Event.STOP)
            raise
        except BaseException as error:
            if _is_current(component):
                component.handle(Event.FAIL, error)
            _raise_exit(error)


def cancel_all(components: Iterable[Component]) -> None:
    """Cancel components. The set may shrink meanwhile: a component leaves it when it ends."""
    for component in list(components):
        component.cancel()


def _is_current(component: Component) -> bool:
    """Return whether this task runs the current attempt; a stopped one may still run."""
    return component.job is asyncio.current_task()


def _raise_exit(error: BaseException) -> None:
    """Raise an error that ends the program; its component has failed with it already."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


async def _make_text(component: Component) -> str:
    """Call the function of a task with the values of its dependencies.

    The stock engine passes futures, so a function written for it may await an argument. Such a
    function is called a second time, with the futures, which are all done.

    Args:
        component: The task; the values are in its description.

    Returns:
        The command line or the prompt.

    Raises:
        ValueError: The result is empty or not a string.
    """
    description = component.description
    try:
        text = component.function(*description["args"], **description["kwargs"])
        if inspect.isawaitable(text):
            text = await text
    except TypeError as error:
        if not component.arguments or "await" not in str(error):
            raise
        args, kwargs = component.arguments
        text = await component.function(*args, **kwargs)
    if not text or not isinstance(text, str):
        what = "command string" if component.kind == EXECUTABLE else "string prompt"
        raise ValueError(
            f"{component.kind.capitalize()} task '{component.name}' must return a non-empty "
            f"{what}, got {text!r:.80}"
        )
    return text


def _set_command(component: Component, text: str) -> None:
    """Split a command line into the program and its arguments.

    Raises:
        ValueError: The text contains no program, or a quotation mark is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f"Executable task '{component.name}' returned {text!r:.80}, which cannot be split "
            f"into words: {error}; use shlex.join([...]) to build a command line from words"
        ) from error
    if not words:
        raise ValueError(
            f"Executable task '{component.name}' must return a non-empty command string, "
            f"got {text!r:.80}"
        )
    component.description["executable"], *rest = words
    component.description["arguments"] = rest
    component.description["_tel_executable"] = words[0]
