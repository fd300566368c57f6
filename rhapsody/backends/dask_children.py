"""One executable in a thread of a Dask worker, which waits for it without an event loop."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import subprocess
import threading
from typing import Any

from rhapsody.backends.executables import GRACE_SECONDS, Executable
from rhapsody.backends.guard import GuardedGroups
from rhapsody.processes import end_group

__all__ = ["Child"]

CHUNK = 64 * 1024
"""Bytes read at once; as much as a pipe holds."""


class Child:
    """An executable that runs in the thread that calls `run`, and can be ended from another.

    A loop made for each child, as `Executable.run` needs one, takes five times the CPU time.

    Args:
        executable: What to run.
        children: Has the process id while the child lives.
    """

    def __init__(self, executable: Executable, children: GuardedGroups) -> None:
        self._executable = executable
        self._children = children
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._given_up, self._give_up = os.pipe()

    def run(self) -> dict[str, Any]:
        """Run it to its end, once.

        Returns:
            The fields that `Executable.run` returns.

        Raises:
            TaskExecutionError: It could not be started.
            CancelledError: It was ended before it had started.
        """
        try:
            with self._executable.outputs() as (stdout, stderr):
                process = self._start(stdout, stderr)
                with process:
                    output = self._wait(process)
            return self._executable.fields(process.returncode, *output)
        finally:
            with self._lock:
                self._process = None
                os.close(self._given_up)
                os.close(self._give_up)

    def end(self) -> None:
        """End it with its process group: SIGTERM, then SIGKILL; called on an event loop."""
        with self._lock:
            self._ending = True
            if self._process is not None:
                end_group(self._process.pid, signal.SIGTERM)
                asyncio.get_running_loop().call_later(GRACE_SECONDS, self._kill)

    def _kill(self) -> None:
        with self._lock:
            if self._process is not None:
                end_group(self._process.pid, signal.SIGKILL)
                # A process that left the group may hold the pipes open.
                os.write(self._give_up, b"x")

    def _start(self, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ending:
                raise asyncio.CancelledError
            self._process = self._executable.start(self._children, stdout, stderr)
            return self._process

    def _wait(self, process: subprocess.Popen[bytes]) -> list[bytes | None]:
        over = False
        try:
            output = self._read(process)
            process.wait()
            over = not self._ending
            return output
        finally:
            if not over:  # also when the leader has gone: one of its children may have stayed
                end_group(process.pid, signal.SIGKILL)
            self._children.discard(process.pid)

    def _read(self, process: subprocess.Popen[bytes]) -> list[bytes | None]:
        """Return what it wrote to its pipes until it closed them, or was given up."""
        if process.stdout is None or process.stderr is None:
            return [None, None]
        output = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        with selectors.PollSelector() as selector:
            for pipe in (*output, self._given_up):
                selector.register(pipe, selectors.EVENT_READ)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.fd == self._given_up:
                        return list(map(bytes, output.values()))
                    if chunk := os.read(key.fd, CHUNK):
                        output[key.fd] += chunk
                    else:
                        selector.unregister(key.fd)
        return list(map(bytes, output.values()))
