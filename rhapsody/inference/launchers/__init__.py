"""Launchers: ways to start a replica's server process, one module each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Launcher", "ServerProcess"]

LOG_TAIL_BYTES = 4000
"""How much of the end of a server's log its errors show."""


class ServerProcess(Protocol):
    """A server's process with all its children, and its log."""

    @property
    def pid(self) -> int:
        """Process id on its own node."""

    @property
    def address(self) -> str:
        """Where it is to listen: `unix:<path>` or `http://<host>:<port>`."""

    @property
    def ended(self) -> bool:
        """Whether it has been ended: its number may be another process's by now."""

    async def wait(self) -> int:
        """Wait for its end and return its exit code, -N where signal N ended it."""

    async def end(self, grace: float = 3.0) -> None:
        """End it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""

    def kill(self) -> None:
        """End all of it at once; may be called from any thread."""

    def log_tail(self) -> str:
        """Return the last lines of its output."""


class Launcher(Protocol):
    """Starts servers at one place."""

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> ServerProcess:
        """Start a server, which must not outlive this process in any case.

        Args:
            command: Program and arguments, but for the address.
            environment: Variables on top of those of its surroundings; they hold secrets.
            log: File for its standard output and error, where it runs on this machine.
            socket: Unix socket to listen on, where it runs on this machine.

        Raises:
            OSError: It cannot be started.
        """
