"""The life of a backend: it starts on first use, shuts down, and can start again.

Each of these words has one meaning in the whole package:

| Word | Meaning |
|---|---|
| start | acquire what an object needs |
| stop | release what `start` acquired, after all tasks have ended |
| shutdown | cancel all tasks, then stop; public and idempotent |
| close | allow no further input or output: a session, a connection, an attachment |
| cancel | end a task early because its owner asks for it |
| interrupt | make running code end early, for a cancellation or a timeout |
| kill | end a process at once |
| detach | release a backend from its owner |
| drain | finish the work in hand and take no more |
| retire | give a worker or a replica no more work, and end it |

Two methods combine them: `shutdown_on_service_loop` is `shutdown`, called on that loop;
`kill_children` kills child processes when the interpreter exits without a shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Generator
from types import TracebackType
from typing import Any, TypeVar

from rhapsody.backends.core.at_exit import shut_down_at_exit
from rhapsody.backends.core.service_loop import refuse_at_end, service_loop
from rhapsody.errors import BackendError

__all__ = ["Lifecycle"]

logger = logging.getLogger(__name__)

L = TypeVar("L", bound="Lifecycle")


class Lifecycle:
    """Start and shutdown on the service loop; concurrent calls share one start or shutdown.

    Args:
        name: Name of the backend. None: the name of its class.

    Raises:
        ValueError: The name is not a non-empty string.
        RhapsodyError: The main thread of the program has ended.
    """

    def __init__(self, name: str | None = None) -> None:
        name = type(self).__name__ if name is None else name
        if not name or not isinstance(name, str):
            raise ValueError(f"a backend's name must be a non-empty string, got {name!r}")
        refuse_at_end()
        self.name = name
        self._state = "IDLE"
        self._pid = os.getpid()  # of the process in which it was started last
        self._start_task: asyncio.Task[Exception | None] | None = None
        self._shutdown_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Acquire what the backend needs, on the service loop. Clean up if it fails midway."""

    async def stop(self) -> None:
        """Release what `start` acquired, on the service loop, after every task has ended."""

    def kill_children(self) -> None:
        """Kill child processes at interpreter exit, if a shutdown took too long."""

    def cancel_all(self) -> list[asyncio.Future[Any]]:
        """Cancel all tasks and return futures that are done when the tasks have ended."""
        raise NotImplementedError

    @property
    def is_up(self) -> bool:
        """Whether the backend runs and no shutdown has begun."""
        return (
            self._state == "RUNNING" and self._shutdown_task is None and not self._is_of_the_parent
        )

    @property
    def _is_of_the_parent(self) -> bool:
        """Whether this process was forked from the one in which the backend runs."""
        return self._pid != os.getpid() and self._state not in ("IDLE", "STOPPED", "FAILED")

    def state(self) -> str:
        """Return IDLE, STARTING, RUNNING, STOPPING, STOPPED or FAILED."""
        return self._state

    async def initialize(self: L) -> L:
        """Start the backend, unless it runs already.

        Returns:
            The backend itself.

        Raises:
            RhapsodyError: The backend cannot start; the message has the reason.
        """
        await service_loop().run(self._ensure_started())
        return self

    def __await__(self: L) -> Generator[Any, None, L]:
        return self.initialize().__await__()

    async def __aenter__(self: L) -> L:
        return await self.initialize()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def _ensure_started(self) -> None:
        if self._is_of_the_parent:
            raise BackendError(
                self.name,
                f"it was started in process {self._pid}, from which this process was forked; make "
                "a session and backends in each process",
            )
        while self._shutdown_task is not None:
            await asyncio.shield(self._shutdown_task)
        if self._state == "RUNNING":
            return
        refuse_at_end()
        if self._start_task is None:
            self._start_task = asyncio.get_running_loop().create_task(self._start_once())
        error = await asyncio.shield(self._start_task)
        if error is not None:
            raise error

    async def _start_once(self) -> Exception | None:
        self._state, self._pid = "STARTING", os.getpid()
        shut_down_at_exit(self)
        try:
            await self.start()
        except asyncio.CancelledError:
            self._state = "IDLE"
            return BackendError(self.name, "it was shut down while it was starting")
        except BaseException as error:
            self._state = "FAILED"
            # Any other BaseException, such as SystemExit, would end the service loop.
            return (
                error
                if isinstance(error, Exception)
                else BackendError(self.name, f"its start raised {error!r}")
            )
        finally:
            self._start_task = None
        self._state = "RUNNING"
        logger.info("backend '%s' is running", self.name)
        return None

    async def shutdown(self) -> None:
        """Cancel all tasks and release all resources. Idempotent; never raises.

        In a forked child it does nothing: the backend is that of the parent.
        """
        if not self._is_of_the_parent:
            await service_loop().run(self.shutdown_on_service_loop())

    async def shutdown_on_service_loop(self) -> None:
        """Shut down, on the service loop; concurrent calls wait for the same shutdown."""
        if self._shutdown_task is None:
            self._shutdown_task = asyncio.get_running_loop().create_task(self._shut_down_once())
        await asyncio.shield(self._shutdown_task)

    async def _shut_down_once(self) -> None:
        try:
            ending = self.cancel_all()
            if self._start_task is not None:
                # After its first step: a coroutine cancelled before that never runs.
                asyncio.get_running_loop().call_soon(self._start_task.cancel)
                ending.append(self._start_task)
            if ending:
                await asyncio.wait(ending)
            if self._state not in ("IDLE", "STOPPED"):
                self._state = "STOPPING"
                await self.stop()
            self._state = "STOPPED"
        except Exception:
            self._state = "FAILED"
            logger.exception("backend '%s' did not shut down cleanly", self.name)
        finally:
            self._shutdown_task = None
