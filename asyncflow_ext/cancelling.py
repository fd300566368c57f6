"""Cancelling a component: at once where no backend has it, through its backend otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from asyncflow_ext.component import Component, Stage
from asyncflow_ext.sender import Sender

__all__ = ["Canceller"]

logger = logging.getLogger(__name__)

CONFIRM_SECONDS = 2.0
"""How long a backend may take to confirm that it stopped a task."""


class EndCancelled(Protocol):
    """Ends a component as cancelled; `again` is false where its work may still go on."""

    def __call__(self, component: Component, again: bool = True) -> None: ...


class Canceller:
    """Asks backends to stop tasks, and releases who waits for them, whatever a backend does.

    Args:
        loop: The engine's loop.
        sender_of: Gives the sender that a component goes through.
        end: Ends a component as cancelled.
        own: Keeps an asyncio task until it is done.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sender_of: Callable[[Component], Sender],
        end: EndCancelled,
        own: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._loop = loop
        self._sender_of = sender_of
        self._end = end
        self._own = own

    def cancel(self, component: Component) -> None:
        """Cancel a component that has not ended."""
        if component.runs_here or component.stage in (Stage.WAITING, Stage.PREPARING):
            self._end(component)
        elif component.stage is Stage.QUEUED:
            self._sender_of(component).remove(component)
            self._end(component)
        elif not component.cancelling:
            component.cancelling = True
            component.stop_timer()
            component.timer = self._loop.call_later(CONFIRM_SECONDS, self._give_up, component)
            if component.stage is Stage.SUBMITTED:
                self.ask(component)

    def ask(self, component: Component) -> None:
        """Have its backend, which has it by now, stop a component."""
        self._own(asyncio.Task(self._ask(component), loop=self._loop))

    async def _ask(self, component: Component) -> None:
        try:
            answer = await self._sender_of(component).backend.cancel_task(component.uid)
        except Exception:
            logger.exception("a backend raised from cancel_task")
            answer = False
        if answer is False and component.cancelling:
            self._end(component, again=False)

    def _give_up(self, component: Component) -> None:
        logger.warning("the backend did not confirm that it stopped task %s", component.uid)
        self._end(component, again=False)
