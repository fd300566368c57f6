"""Starts a replica's server as a child process on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from rhapsody.processes import GROUP, child_environment, end_group
from rhapsody.waiting import done_within

__all__ = ["LocalLauncher", "ServerProcess"]

LOG_TAIL_BYTES = 4000


class ServerProcess:
    """A server's process, in a process group of its own, its output in a log file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, leash: int) -> None:
        self._process = process
        self._log = log
        self._leash = leash
        self.ended = False
        """Whether `end` has ended it: its number may be another process's by now."""

    @property
    def pid(self) -> int:
        """Process id; of its process group as well."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end and return its exit code, -N where signal N ended it."""
        return await self._process.wait()

    async def end(self, grace: float = 3.0) -> None:
        """End it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""
        if self.ended:
            return
        if self._process.returncode is None:
            end_group(self.pid, signal.SIGTERM)
            await done_within(self._process.wait(), grace)
        self.kill()
        await self._process.wait()
        if not self.ended:
            self.ended = True
            os.close(self._leash)

    def kill(self) -> None:
        """End the whole group at once; what the server left behind as well."""
        if not self.ended:
            end_group(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the last lines of the server's output."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").strip()
        return ""


class LocalLauncher:
    """Starts servers on this machine."""

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> ServerProcess:
        """Start a server.

        The server inherits the reading end of a pipe, named by RHAPSODY_PARENT_FD, whose other
        end this process holds: when this process ends, however, the server reads an end of file
        and exits.

        Args:
            command: Program and arguments.
            environment: Variables on top of this process's.
            log: File for its standard output and error.

        Raises:
            OSError: It cannot be started.
        """
        reading, writing = os.pipe()
        variables = {**child_environment(), **environment, "RHAPSODY_PARENT_FD": str(reading)}
        try:
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=variables,
                    pass_fds=(reading,),
                    **GROUP,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return ServerProcess(process, log, writing)
