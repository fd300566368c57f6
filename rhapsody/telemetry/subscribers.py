"""Subscribers: callbacks that receive every event, in order, independently of its recording."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rhapsody.telemetry.bounded_queue import BoundedQueue
from rhapsody.telemetry.events import BaseEvent

__all__ = ["Subscribers"]

logger = logging.getLogger(__name__)

_BATCH = 200
_CLOSE_SECONDS = 5.0


@dataclass
class _Subscriber:
    callback: Callable[[BaseEvent], Any]
    failures: int = 0


class Subscribers:
    """Delivers events to callbacks from one asyncio task.

    A slow callback delays later deliveries, but not the counts. If `maxlen` events are pending,
    further ones are dropped and counted in `dropped`.

    Args:
        maxlen: The maximum number of pending events.
    """

    def __init__(self, maxlen: int) -> None:
        self._subscribers: list[_Subscriber] = []
        self._wake = asyncio.Event()
        self._queue: BoundedQueue[BaseEvent] = BoundedQueue(maxlen, self._wake.set)
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def dropped(self) -> int:
        """The number of events that were not delivered because too many were pending."""
        return self._queue.dropped

    def add(self, callback: Callable[[BaseEvent], Any]) -> None:
        """Deliver to `callback`, a function or a coroutine function, from now on."""
        self._subscribers.append(_Subscriber(callback))

    def start(self) -> None:
        """Start delivering on the running loop."""
        self._queue.bind()
        self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-subscribers")

    def put(self, event: BaseEvent) -> None:
        """Queue an event, from any thread."""
        if self._subscribers:
            self._queue.put(event)

    async def close(self) -> None:
        """Deliver the pending events within a few seconds, then stop."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        _, late = await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if late:
            logger.warning(
                "telemetry subscribers did not finish in %.0f s; %d events were not delivered",
                _CLOSE_SECONDS,
                len(self._queue),
            )
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for subscriber in self._subscribers:
            if subscriber.failures > 1:
                logger.error(
                    "telemetry subscriber %r raised %d times",
                    subscriber.callback,
                    subscriber.failures,
                )

    async def _run(self) -> None:
        while True:
            events = self._queue.take(_BATCH)
            if not events:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            for event in events:
                for subscriber in tuple(self._subscribers):
                    await self._call(subscriber, event)
            await asyncio.sleep(0)  # functions alone would not let the loop run

    async def _call(self, subscriber: _Subscriber, event: BaseEvent) -> None:
        error: BaseException | None = None
        try:
            result = subscriber.callback(event)
            if inspect.isawaitable(result):
                # gather distinguishes a cancelled callback from a cancellation of this task.
                outcomes = await asyncio.gather(result, return_exceptions=True)
                error = outcomes[0] if isinstance(outcomes[0], BaseException) else None
        except Exception as raised:
            error = raised
        if error is None:
            return
        subscriber.failures += 1
        if subscriber.failures == 1:
            logger.error(
                "telemetry subscriber %r raised on %s; further failures are only counted",
                subscriber.callback,
                event.event_type,
                exc_info=error,
            )
