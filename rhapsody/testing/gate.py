"""A gate that holds a task: a test learns of the task's start and end, and releases it.

A held task connects to the gate and waits. When the connection closes, the task has ended, whether
on its own, by a signal or together with its process.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import defaultdict
from types import TracebackType
from typing import Any

__all__ = ["PATIENCE_SECONDS", "Gate", "hold", "hold_async"]

PATIENCE_SECONDS = 30.0
"""Longest wait for any event; then the test fails."""

_HOLD = (
    "import socket, sys; "
    "line = socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
    "line.sendall(sys.argv[3].encode() + b'\\n'); "
    "line.recv(1); "
    "print(sys.argv[3])"
)


def hold(host: str, port: int, uid: str) -> str:
    """Wait at a gate and return the uid; a sync function."""
    with socket.create_connection((host, port)) as line:
        line.sendall(f"{uid}\n".encode())
        line.recv(1)
    return uid


async def hold_async(host: str, port: int, uid: str) -> str:
    """Wait at a gate and return the uid; an async function."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{uid}\n".encode())
        await reader.read(1)
    finally:
        writer.close()
    return uid


class Gate:
    """Holds tasks until a test releases them; an async context manager.

    Args:
        host: Address of this machine that tasks can reach.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._server: asyncio.Server | None = None
        self._started: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._handlers: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for `hold` and `hold_async`."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    def command(self, uid: str) -> list[str]:
        """Return a command that waits at the gate in a child of a shell, then prints the uid."""
        host, port = self.address
        hold = [sys.executable, "-I", "-S", "-c", _HOLD, host, str(port), uid]
        return ["/bin/sh", "-c", '"$0" "$@" & wait', *hold]

    async def started(self, uid: str) -> None:
        """Wait until a task has reached the gate."""
        await asyncio.wait_for(self._started[uid].wait(), PATIENCE_SECONDS)

    def release(self, uid: str) -> None:
        """Release a task that has reached the gate."""
        self._writers[uid].write(b"\n")

    async def ended(self, uid: str) -> None:
        """Wait until a task that reached the gate has ended."""
        await asyncio.wait_for(self._ended[uid].wait(), PATIENCE_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        uid = ""
        try:
            uid = (await reader.readline()).decode().strip()
            self._writers[uid] = writer
            self._started[uid].set()
            await reader.read()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the task was killed, or the gate is closing
        finally:
            self._ended[uid].set()
            self._handlers.discard(handler)
            writer.close()

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await self._server.wait_closed()
