"""Hands ready tasks to one backend: one call at a time, everything that waits in each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncflow_ext.component import Component, Stage

__all__ = ["Sender"]


class Sender:
    """The queue in front of one backend.

    A backend that is slow to take tasks delays only its own: each backend has a sender.

    Args:
        backend: The backend.
        loop: The engine's loop.
        on_sending: Called with a batch just before the backend gets it.
        on_sent: Called with a batch that the backend took.
        on_error: Called with a batch and what the backend raised instead.
    """

    def __init__(
        self,
        backend: Any,
        loop: asyncio.AbstractEventLoop,
        on_sending: Callable[[list[Component]], None],
        on_sent: Callable[[list[Component]], None],
        on_error: Callable[[list[Component], BaseException], None],
    ) -> None:
        self.backend = backend
        self._loop = loop
        self._stopping = False
        self._on_sending = on_sending
        self._on_sent = on_sent
        self._on_error = on_error
        self._waiting: dict[str, Component] = {}
        self._job: asyncio.Task[None] | None = None

    def add(self, component: Component) -> None:
        """Queue a component; those of one pass of the loop leave together."""
        component.stage = Stage.QUEUED
        self._waiting[component.uid] = component
        if self._job is None:
            # Not `create_task`, which may run it eagerly: one pass of the loop is one batch.
            self._job = asyncio.Task(self._send(), loop=self._loop)

    def remove(self, component: Component) -> None:
        """Take a component out again that has not been sent."""
        self._waiting.pop(component.uid, None)

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = list(self._waiting.values())
                self._waiting.clear()
                for component in batch:
                    component.stage = Stage.SUBMITTING
                self._on_sending(batch)
                try:
                    await self.backend.submit_tasks([c.description for c in batch])
                except BaseException as error:
                    if self._stopping:
                        raise
                    self._on_error(batch, error)
                else:
                    self._on_sent(batch)
        finally:
            self._job = None

    async def stop(self, seconds: float) -> None:
        """Send nothing more; a call that does not end when cancelled is left to itself."""
        self._stopping = True
        self._waiting.clear()
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job], timeout=seconds)
