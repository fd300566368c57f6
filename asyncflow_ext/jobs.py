"""The asyncio tasks of an engine: the bodies of components, and what else has to end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

from asyncflow_ext.component import Component

__all__ = ["Jobs", "cancel_all"]

logger = logging.getLogger(__name__)


class Jobs:
    """Starts the bodies of components, stops them, and waits for their ends.

    Args:
        loop: The engine's loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._owned: set[asyncio.Task[Any]] = set()

    def start(self, component: Component, body: Coroutine[Any, Any, None]) -> None:
        """Run a body in the context of the component's call."""
        assert component.context is not None
        # Not `create_task`, which may run the body before there is a job to speak of.
        component.job = component.context.run(partial(asyncio.Task, body, loop=self._loop))

    def stop(self, component: Component) -> None:
        """Cancel a component's body, if one runs."""
        job, component.job = component.job, None
        if job is not None:
            self.cancel(job)

    def cancel(self, job: asyncio.Task[Any]) -> None:
        """Cancel a body that has not ended and is not what calls this."""
        if not job.done() and job is not asyncio.current_task():
            job.cancel()
            self.own(job)

    def own(self, task: asyncio.Task[Any]) -> None:
        """Keep a task until it is done."""
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)

    async def end(self, seconds: float) -> None:
        """Cancel what is left and wait for it, so many seconds at most."""
        owned = set(self._owned)
        if not owned:
            return
        for task in owned:
            task.cancel()
        _, left = await asyncio.wait(owned, timeout=seconds)
        for task in left:
            logger.warning("%s goes on after it was cancelled", task)


def cancel_all(components: Iterable[Component]) -> None:
    """Cancel components; they leave the set that they are members of as they end."""
    for component in list(components):
        component.cancel()
