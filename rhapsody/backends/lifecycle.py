"""A backend's life: started when it is first used, shut down once, started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from types import TracebackType
from typing import Any, TypeVar

from rhapsody.api.errors import BackendError
from rhapsody.backends.at_exit import end_at_exit
from rhapsody.backends.service import service_loop

__all__ = ["Lifecycle"]

logger = logging.getLogger(__name__)

L = TypeVar("L", bound="Lifecycle")


class Lifecycle:
    """Start and shutdown on the service loop, each once at a time whoever asks for it.

    Args:
        name: The backend's name; the class's where None.

    Raises:
        ValueError: The name is not a non-empty string.
    """

    def __init__(self, name: str | None = None) -> None:
        name = type(self).__name__ if name is None else name
        if not name or not isinstance(name, str):
            raise ValueError(f"a backend's name must be a non-empty string, not {name!r}")
        self.name = name
        self._state = "IDLE"
        self._starter: asyncio.Task[Exception | None] | None = None
        self._closer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Acquire what the backend needs, on the service loop. Clean up if it fails midway."""

    async def stop(self) -> None:
        """Release it all, on the service loop, after every task has ended."""

    def abandon(self) -> None:
        """End child processes at interpreter exit, at once, where a shutdown took too long."""

    def end_all(self) -> list[asyncio.Future[Any]]:
        """Begin to end all that is under way, and return what ends then."""
        raise NotImplementedError

    @property
    def is_up(self) -> bool:
        """Whether it runs, and is not being shut down."""
        return self._state == "RUNNING" and self._closer is None

    def state(self) -> str:
        """Return IDLE, STARTING, RUNNING, STOPPING, STOPPED or FAILED."""
        return self._state

    async def initialize(self: L) -> L:
        """Start the backend, unless it runs.

        Returns:
            The backend itself.

        Raises:
            RhapsodyError: It cannot start, with the reason.
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
        while self._closer is not None:
            await asyncio.shield(self._closer)
        if self._state == "RUNNING":
            return
        if self._starter is None:
            self._starter = asyncio.get_running_loop().create_task(self._start_up())
        error = await asyncio.shield(self._starter)
        if error is not None:
            raise error

    async def _start_up(self) -> Exception | None:
        self._state = "STARTING"
        end_at_exit(self)
        try:
            await self.start()
        except asyncio.CancelledError:
            self._state = "IDLE"
            return BackendError(self.name, "it was shut down while it was starting")
        except BaseException as error:
            self._state = "FAILED"
            # What is not an `Exception`, such as SystemExit, would end the service loop.
            return (
                error
                if isinstance(error, Exception)
                else BackendError(self.name, f"its start raised {error!r}")
            )
        finally:
            self._starter = None
        self._state = "RUNNING"
        logger.info("backend '%s' is running", self.name)
        return None

    async def shutdown(self) -> None:
        """End all that is under way and release everything; never raises."""
        await service_loop().run(self.shut_down_once())

    async def shut_down_once(self) -> None:
        """Shut down, on the service loop; what calls it meanwhile waits for the same end."""
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(self._shut_down())
        await asyncio.shield(self._closer)

    async def _shut_down(self) -> None:
        try:
            ending = self.end_all()
            if self._starter is not None:
                asyncio.get_running_loop().call_soon(self._starter.cancel)  # behind its first step
                ending.append(self._starter)
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
            self._closer = None
