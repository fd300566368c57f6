"""Retries: the pause after a failed attempt, and the preparation of the next one."""

from __future__ import annotations

import asyncio
from contextvars import Context

from asyncflow_ext.component import Component, Event, Timers
from asyncflow_ext.execution import Bodies, cancel_all
from rhapsody.backends.core.retries import clear_result

__all__ = ["Retries"]


class Retries:
    """Ends failed attempts of components, and starts the next ones after a pause.

    Args:
        loop: The engine's loop.
        context: The context in which timers run.
        bodies: Stops the bodies of attempts.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, bodies: Bodies) -> None:
        self._loop = loop
        self._context = context
        self._bodies = bodies

    def pause(self, component: Component) -> None:
        """End the current attempt of a component, and send RESUME after a pause.

        The first pause takes `backoff` seconds; each later one is twice as long.
        """
        self._bodies.stop(component)
        cancel_all(component.members or ())
        clear_result(component.description)
        seconds = component.options.retry_policy.pause(component.attempt)
        component.attempt += 1
        timers = component.timers = Timers()
        timers.pause = self._loop.call_later(
            seconds, component.handle, Event.RESUME, context=self._context
        )
