"""The interface of launchers: a server's process is started, stopped and watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = [
    "CLEANUP_SECONDS",
    "POLL_SECONDS",
    "Launcher",
    "ServerProcess",
]

CLEANUP_SECONDS = 5.0
"""Time for the children of a server that has exited to exit by themselves."""
POLL_SECONDS = 0.02
"""Pause between checks whether those children still exist; no event reports their exit."""


class ServerProcess(Protocol):
    """A server's process with all its children, and its log."""

    @property
    def pid(self) -> int:
        """Process id on its own node."""

    @property
    def pids(self) -> Sequence[int]:
        """Process ids of all its ranks, on their own nodes; rank 0 first."""

    @property
    def address(self) -> str:
        """The address that it listens on: `unix:<path>` or `http://<host>:<port>`."""

    @property
    def stopped(self) -> bool:
        """Whether `stop` has returned. Its process id may belong to another process then."""

    async def wait(self) -> int:
        """Wait until it exits and return its exit code, -N after signal N."""

    async def note_shared_memory(self) -> None:
        """Note the shared memory of its processes, which `stop` removes if they were killed."""

    async def stop(self, grace: float = 3.0) -> None:
        """Stop it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""

    def kill(self) -> None:
        """Kill it and its children at once. May be called from any thread."""

    def log_tail(self) -> str:
        """Return the last lines of its output, after the first error if that stands before them."""


class Launcher(Protocol):
    """Starts servers on one node, with given GPUs."""

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> ServerProcess:
        """Start a server. It must end when this program ends, however that happens.

        Args:
            command: Program and arguments, without the address.
            environment: Variables added to those of the launcher's node; they hold secrets.
            log: File for its standard output and error, if it runs on this machine.
            socket: Unix socket to listen on, if it runs on this machine.

        Raises:
            OSError: The server cannot be started.
        """
