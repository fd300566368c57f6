"""Subscribers: callbacks that are given every event, in order, away from the recording of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rhapsody.telemetry.events import BaseEvent
from rhapsody.telemetry.inbox import Inbox

__all__ = ["Subscribers"]

logger = logging.getLogger(__name__)

_BATCH = 200
_CLOSE_SECONDS = 5.0


@dataclass
class _Subscriber:
    callback: Callable[[BaseEvent], Any]
    failures: int = 0


class Subscribers:
    """Delivers events to callbacks from one task of its own.

    A slow callback delays later deliveries, not the counts. Beyond `maxlen` events that wait to
    be delivered, further ones are not delivered and are counted in `dropped`.

    Args:
        maxlen: How many events may wait.
    """

    def __init__(self, maxlen: int) -> None:
        self._subscribers: list[_Subscriber] = []
        self._wake = asyncio.Event()
        self._inbox: Inbox[BaseEvent] = Inbox(maxlen, self._wake.set)
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def dropped(self) -> int:
        """How many events were not delivered because too many waited."""
        return self._inbox.dropped

    def add(self, callback: Callable[[BaseEvent], Any]) -> None:
        """Deliver to `callback`, a function or a coroutine function, from now on."""
        self._subscribers.append(_Subscriber(callback))

    def start(self) -> None:
        """Begin to deliver on the running loop."""
        self._inbox.bind()
        self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-subscribers")

    def put(self, event: BaseEvent) -> None:
        """Deliver an event soon; any thread may call."""
        if self._subscribers:
            self._inbox.put(event)

    async def close(self) -> None:
        """Deliver what waits, for a few seconds at most, and end."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        _, late = await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if late:
            logger.warning(
                "telemetry subscribers did not finish in %.0f s; %d events not delivered",
                _CLOSE_SECONDS,
                len(self._inbox),
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
            events = self._inbox.take(_BATCH)
            if not events:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            for event in events:
                for subscriber in tuple(self._subscribers):
                    await self._call(subscriber, event)
            await asyncio.sleep(0)  # plain callbacks alone would not let the loop turn

    async def _call(self, subscriber: _Subscriber, event: BaseEvent) -> None:
        error: BaseException | None = None
        try:
            result = subscriber.callback(event)
            if inspect.isawaitable(result):
                # gather tells a callback that was cancelled from this task being cancelled.
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
