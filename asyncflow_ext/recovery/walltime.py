"""The end of an engine's run before its walltime: which components finish, start or are held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

from asyncflow_ext.component import BLOCK, Component, Stage, is_pending
from rhapsody.errors import WalltimeReached
from rhapsody.walltime.guard import WalltimeGuard

__all__ = ["EngineWalltime"]

AT_BACKEND = (Stage.SUBMITTING, Stage.SUBMITTED)
BUSY = (*AT_BACKEND, Stage.PREPARING, Stage.RUNNING)


class EngineWalltime(WalltimeGuard):
    """Ends an engine's run in time.

    Args:
        components: Returns the components that have not ended.
        margin: Seconds before the end at which nothing new is started any more.
        on_end: Called with the error when the margin is over or nothing runs any more.

    Attributes:
        withdrawn: Components that their backends were asked to give back.
    """

    def __init__(
        self,
        components: Callable[[], Collection[Any]],
        margin: float,
        on_end: Callable[[WalltimeReached], None],
    ) -> None:
        super().__init__(margin)
        self.withdrawn: set[Component] = set()
        self._components = components
        self._on_end = on_end

    def _tasks(self) -> Iterator[Component]:
        for component in list(self._components()):  # users may put other objects there
            if isinstance(component, Component) and component.kind != BLOCK:
                yield component  # a block waits for its tasks

    def _withdraw(self) -> None:
        for component in self._tasks():
            queue: Any = component.queue
            if component.stage == Stage.QUEUED and queue is not None:
                queue.withdraw(component)
            elif (
                component.stage in AT_BACKEND
                and queue.reports_running
                and component.state != "RUNNING"
            ):
                self.withdrawn.add(component)
                queue.cancel(component)

    def _busy(self) -> list[asyncio.Future[Any]]:
        return [c for c in self._tasks() if self._runs(c) and not _is_stuck(c, self._does_not_run)]

    def _runs(self, component: Component) -> bool:
        left_out = component in self.withdrawn or component in self._held
        return component.stage in BUSY and not left_out

    def _does_not_run(self, component: Component) -> bool:
        return not self._runs(component)

    def _is_idle(self) -> bool:
        held = self._held
        return all(
            component in held
            or _waits_for_components(component)
            or _is_stuck(component, held.__contains__)
            for component in self._tasks()
        )

    async def _end_run(self, error: WalltimeReached) -> None:
        self._on_end(error)

    def may_launch(self, component: Component) -> bool:
        """Return whether a component can end before the walltime; if not, it is held."""
        options = component.options
        return self.may_start(component, options.expected or options.timeout, component.name)

    async def run_prompt(
        self,
        component: Component,
        backend: str,
        fields: Mapping[str, Any],
        run: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    ) -> dict[str, Any]:
        """Return the result fields of a prompt; one that cannot end in time is not sent.

        Such a prompt waits until the end of the run cancels its component.

        Args:
            component: The AI task, whose body runs.
            backend: The name of the backend.
            fields: The fields of the prompt.
            run: Sends the prompt.
        """
        seconds = self.token_rates.seconds(backend, component.name, fields)
        if seconds is not None and self.reached is None:
            seconds = min(seconds, fields.get("timeout") or seconds)
            if not self.may_start(component, seconds, component.name):
                await component.get_loop().create_future()
        began = time.monotonic()
        result = await run()
        took = time.monotonic() - began
        self.token_rates.note(backend, component.name, fields, result.get("usage"), took)
        return result


def _is_stuck(component: Component, is_held: Callable[[Component], bool]) -> bool:
    """Return whether a component is an agent, and all calls that it waits for are held."""
    members = [] if component.conversation is None else list(component.members or ())
    return bool(members) and all(not one.done() and is_held(one) for one in members)


def _waits_for_components(component: Component) -> bool:
    """Return whether a component can start only after other components."""
    return component.stage == Stage.WAITING and any(
        isinstance(dependency, Component) and is_pending(dependency)
        for dependency in component.dependencies
    )
