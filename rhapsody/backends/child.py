"""A child process on an event loop: what it writes, and its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from typing import IO

__all__ = ["Child"]

CHUNK = 64 * 1024
"""Bytes read at once; as much as a pipe holds."""


class Child:
    """Reads a child's pipes and waits for its end, on the loop that runs now.

    asyncio's own subprocesses take half as much CPU time again; before Python 3.12, with a thread
    for each, twice as much.

    Args:
        process: The child, just started; its pipes are closed here.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.exited = asyncio.Event()
        """Set once it has ended; its children may still write into its pipes."""
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._output: dict[IO[bytes], bytearray] = {}
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._output[pipe] = bytearray()
                self._loop.add_reader(pipe.fileno(), self._read, pipe)
        if not self._output:
            self._closed.set()
        self._watch()

    @property
    def exit_code(self) -> int:
        """Its exit code once it has ended; negative where a signal ended it."""
        return self._process.returncode or 0

    async def communicate(self) -> list[bytes]:
        """Wait until it has ended and its pipes are closed; return what came out of each."""
        await self._closed.wait()
        await self.exited.wait()
        return [bytes(written) for written in self._output.values()]

    def close_pipes(self) -> None:
        """Read no more of what it or its children write."""
        for pipe in self._output:
            self._close(pipe)

    def _read(self, pipe: IO[bytes]) -> None:
        try:
            chunk = os.read(pipe.fileno(), CHUNK)
        except BlockingIOError:
            return
        if chunk:
            self._output[pipe] += chunk
        else:
            self._close(pipe)

    def _close(self, pipe: IO[bytes]) -> None:
        if not pipe.closed:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()
        if all(pipe.closed for pipe in self._output):
            self._closed.set()

    def _watch(self) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # macOS, Linux before 5.3
            threading.Thread(
                target=self._wait, name=f"rhapsody-child-{self.pid}", daemon=True
            ).start()
        else:
            self._loop.add_reader(descriptor, self._on_exit, descriptor)

    def _on_exit(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._process.wait()
        self.exited.set()

    def _wait(self) -> None:
        self._process.wait()
        self._loop.call_soon_threadsafe(self.exited.set)
