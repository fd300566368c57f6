"""A child process on an event loop: its output and its exit."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import IO

from rhapsody.processes import ending_group, wait_measured, watch_exit
from rhapsody.waiting import done_within

__all__ = ["CHUNK_BYTES", "Child"]

CHUNK_BYTES = 64 * 1024
"""Maximum number of bytes read at once; the capacity of a pipe."""


class Child:
    """Reads a child's pipes and waits for its exit, on the running loop.

    asyncio's own subprocesses take 1.5 times the CPU time; before Python 3.12, with a thread for
    each child, twice the CPU time.

    Args:
        process: The child, just started. Its pipes are closed here.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.exited = asyncio.Event()
        """Set when the child has exited; its children may still write to its pipes."""
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
        self.peak_memory: int | None = None
        """The most resident memory that it used, in bytes, after the exit. None: not known."""
        watch_exit(process, self.exited.set, self._wait)

    @property
    def exit_code(self) -> int:
        """The exit code after the exit; -N if signal N ended the child."""
        return self._process.returncode or 0

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        self.peak_memory = wait_measured(process)

    async def communicate(self) -> list[bytes]:
        """Wait until the child has exited and its pipes are closed; return the output of each."""
        await self._closed.wait()
        await self.exited.wait()
        return self.output

    @property
    def output(self) -> list[bytes]:
        """The output of each pipe so far."""
        return [bytes(output) for output in self._output.values()]

    async def end(self) -> None:
        """End the child's process group, wait for the child's exit, and read its last output."""
        with ending_group(self.pid) as grace:
            await done_within(self.exited.wait(), grace)
        for pipe in self._output:
            if not pipe.closed:
                self._read(pipe)  # once: a pipe holds no more
        self.close_pipes()  # a process that left the group may hold them open
        await self.exited.wait()

    def close_pipes(self) -> None:
        """Close the pipes; further output is lost."""
        for pipe in self._output:
            self._close(pipe)

    def _read(self, pipe: IO[bytes]) -> None:
        try:
            chunk = os.read(pipe.fileno(), CHUNK_BYTES)
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
