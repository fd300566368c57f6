"""The attempts of components: how long one may take, and the next one after one that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

from asyncflow_ext.cancelling import Canceller, EndCancelled
from asyncflow_ext.component import Component, Stage
from asyncflow_ext.jobs import Jobs, cancel_all

__all__ = ["Attempts"]

STOP_SECONDS = 2.0
"""How long a body that ran out of time may take to end."""

RESULT_KEYS = ("exception", "exit_code", "return_value", "state", "stderr", "stdout")


class Attempts:
    """Ends attempts that take too long, and begins the next ones.

    Args:
        loop: The engine's loop.
        context: In which timers run.
        jobs: Stops bodies on the caller's loop.
        canceller: Stops work that a backend has.
        begin: Begins an attempt.
        end: Ends a component as cancelled, or the attempt where that took too long.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        jobs: Jobs,
        canceller: Canceller,
        begin: Callable[[Component], None],
        end: EndCancelled,
    ) -> None:
        self._loop = loop
        self._context = context
        self._jobs = jobs
        self._canceller = canceller
        self._begin = begin
        self._end = end

    def start_timer(self, component: Component) -> None:
        """Have the present attempt end when it has taken too long, if there is a limit."""
        limit = component.options.timeout
        if limit is not None:
            component.timer = self._loop.call_later(
                limit, self._on_timeout, component, context=self._context
            )

    def _on_timeout(self, component: Component) -> None:
        component.timed_out = True
        if component.runs_here and component.job is not None:
            # Its end is the attempt's end; a body that takes no notice is not waited for.
            component.job.cancel()
            component.timer = self._loop.call_later(
                STOP_SECONDS, self._end, component, False, context=self._context
            )
        else:
            self._jobs.stop(component)
            self._canceller.cancel(component)

    def repeat(self, component: Component) -> None:
        """Begin the next attempt after a pause, each twice as long as the one before."""
        self._jobs.stop(component)
        cancel_all(component.members or ())
        pause = component.options.backoff * 2.0 ** min(component.attempt, 30)
        component.attempt += 1
        component.stage = Stage.WAITING
        component.timed_out = component.cancelling = False
        for key in RESULT_KEYS:
            component.description.pop(key, None)
        component.timer = self._loop.call_later(
            pause, self._begin_again, component, context=self._context
        )

    def _begin_again(self, component: Component) -> None:
        component.timer = None
        self._begin(component)
