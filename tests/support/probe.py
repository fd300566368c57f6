"""A backend whose start, tasks and stop are coroutines of a test, and events between threads."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from rhapsody.backends import BaseBackend, Work
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.protocol import ALL_KINDS
from rhapsody.testing.gate import PATIENCE_SECONDS
from rhapsody.testing.samples import describe


class Flag:
    """An event shared by the service loop and a test; either side can set it or wait for it."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._inside = asyncio.Event()

    def set(self) -> None:
        self._set.set()
        service_loop().call(self._inside.set)

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    async def wait(self) -> None:
        if service_loop().is_current:
            await self._inside.wait()
        else:
            assert await asyncio.to_thread(self._set.wait, PATIENCE_SECONDS)


def task(uid: str = "task.000001", **fields: Any) -> dict[str, Any]:
    return describe(uid, "function", function=len, **fields)


async def done_at_once(work: Work) -> dict[str, Any]:
    return {"return_value": work.uid, "stdout": work.uid}


async def nothing() -> None:
    """Do nothing, as a start or a stop."""


class ProbeBackend(BaseBackend):
    """Calls the coroutines of a test, and counts starts and stops.

    Args:
        execute: Called for each task.
        start: Called by `start`.
        stop: Called by `stop`.
    """

    task_kinds = ALL_KINDS

    def __init__(
        self,
        execute: Callable[[Work], Awaitable[dict[str, Any]]] = done_at_once,
        *,
        start: Callable[[], Awaitable[None]] = nothing,
        stop: Callable[[], Awaitable[None]] = nothing,
    ) -> None:
        super().__init__("probe")
        self._execute, self._start, self._stop = execute, start, stop
        self.starts = 0
        self.stops = 0

    async def execute(self, work: Work) -> dict[str, Any]:
        return await self._execute(work)

    async def start(self) -> None:
        self.starts += 1
        await self._start()

    async def stop(self) -> None:
        self.stops += 1
        await self._stop()


class Held:
    """An `execute` that sets `inside`, waits for `go`, and then finishes the task.

    Args:
        clean_up: Awaited if a task is cancelled.
    """

    def __init__(self, clean_up: Callable[[], Awaitable[None]] = nothing) -> None:
        self.inside = Flag()
        self.go = Flag()
        self.cleaned_up = Flag()
        self._clean_up = clean_up

    async def __call__(self, work: Work) -> dict[str, Any]:
        self.inside.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await self._clean_up()
            self.cleaned_up.set()
            raise
        return await done_at_once(work)
