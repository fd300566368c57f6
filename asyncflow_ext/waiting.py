"""Components that wait for what they depend on, and are launched when all of it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial

from asyncflow_ext.component import Component
from asyncflow_ext.futures import find_futures

__all__ = ["Waiting"]


class Waiting:
    """Launches together what became ready in one pass of the loop.

    Args:
        loop: The engine's loop.
        context: In which callbacks run.
        launch: Launches a component that has not ended.
        cancel: Ends a component, since something that it depends on was cancelled.
        fail: Ends a component that could not be launched.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        launch: Callable[[Component], None],
        cancel: Callable[[Component], None],
        fail: Callable[[Component, BaseException], None],
    ) -> None:
        self._loop = loop
        self._context = context
        self._launch = launch
        self._cancel = cancel
        self._fail = fail
        self._ready: list[Component] = []

    def find(self, component: Component) -> None:
        """Find out what a component depends on: the futures among its arguments.

        Raises:
            RuntimeError: One of them belongs to another event loop.
        """
        description = component.description
        arguments = (description["args"], description["kwargs"])
        arguments, component.dependencies = find_futures(arguments)
        if component.dependencies:
            component.arguments = arguments
        for dependency in component.dependencies:
            if dependency.get_loop() is not self._loop:
                raise RuntimeError(
                    f"an argument of '{component.name}' is a future of another event loop; "
                    "await it there and pass its value"
                )

    def add(self, component: Component) -> None:
        """Have a component launched when all that it depends on has ended."""
        for dependency in component.dependencies:
            if not dependency.done():
                component.waiting += 1
                dependency.add_done_callback(
                    partial(self._on_dependency, component), context=self._context
                )
        if not component.waiting:
            self.launch_soon(component)

    def _on_dependency(self, component: Component, dependency: asyncio.Future[object]) -> None:
        component.waiting -= 1
        if dependency.cancelled():
            self._cancel(component)
        elif not component.waiting:
            self.launch_soon(component)

    def launch_soon(self, component: Component) -> None:
        """Have a component launched that waits for nothing any more."""
        if not self._ready:
            self._loop.call_soon(self._launch_all, context=self._context)
        self._ready.append(component)

    def _launch_all(self) -> None:
        ready, self._ready = self._ready, []
        for component in ready:
            if component.done():
                continue
            try:
                self._launch(component)
            except Exception as error:
                self._fail(component, error)
