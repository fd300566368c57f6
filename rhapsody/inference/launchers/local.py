"""Starts a replica's server as a child process on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rhapsody.inference.protocol.process import PARENT_VARIABLE
from rhapsody.inference.protocol.shared_memory import remove_segments, segments_of
from rhapsody.inference.replicas.launcher import CLEANUP_SECONDS, POLL_SECONDS
from rhapsody.inference.replicas.placement import Place
from rhapsody.inference.replicas.server_log import excerpt_of_file
from rhapsody.processes import GROUP, child_environment, group_exists, signal_group, watch_exit
from rhapsody.waiting import done_within

__all__ = ["LocalLauncher", "LocalProcess"]

logger = logging.getLogger(__name__)


class LocalProcess:
    """A server's process in its own process group, with its output in a log file."""

    def __init__(
        self, process: subprocess.Popen[bytes], address: str, log: Path, parent_pipe: int
    ) -> None:
        self.address = address
        self._process = process
        self._exited = asyncio.Event()
        watch_exit(process, self._exited.set)
        self._log = log
        self._parent_pipe = parent_pipe
        self._segments: set[str] = set()
        self.stopped = False
        """Whether `stop` has returned. The process id may belong to another process then."""

    @property
    def pid(self) -> int:
        """Id of the process and of its process group."""
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The one process id."""
        return (self.pid,)

    async def wait(self) -> int:
        """Wait until it exits and return its exit code, -N after signal N."""
        await self._exited.wait()
        return self._process.returncode

    async def note_shared_memory(self) -> None:
        """Note the shared memory of its processes, which `stop` removes if they were killed."""
        self._segments |= await asyncio.to_thread(segments_of, self.pid)

    async def stop(self, grace: float = 3.0) -> None:
        """Stop it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""
        if self.stopped:
            return
        await self.note_shared_memory()
        signal_group(self.pid, signal.SIGTERM)
        await done_within(self._exited.wait(), grace)
        # Its children remove shared memory after its exit, and no event reports when they exit.
        rest = CLEANUP_SECONDS if self._exited.is_set() else 0.0
        while rest > 0 and group_exists(self.pid):
            await asyncio.sleep(POLL_SECONDS)
            rest -= POLL_SECONDS
        self.kill()
        await self._exited.wait()
        if not self.stopped:
            self.stopped = True
            os.close(self._parent_pipe)
            remove_segments(self._segments)

    def kill(self) -> None:
        """Kill the whole process group at once, including children that outlived the server."""
        if not self.stopped:
            signal_group(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the last lines of its output, after the first error if that stands before them."""
        return excerpt_of_file(self._log)


class LocalLauncher:
    """Starts servers on this machine.

    Args:
        place: The GPUs that the servers may use; None: all.
    """

    def __init__(self, place: Place | None = None) -> None:
        self._place = place

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> LocalProcess:
        """Start a server.

        The server inherits the read end of a pipe, named by RHAPSODY_PARENT_FD, whose write end
        only this process holds. When this process ends, for whatever reason, the server reads
        end-of-file and exits.

        Args:
            command: Program and arguments, without the address.
            environment: Variables added to those of this process.
            log: File for its standard output and error.
            socket: Unix socket to listen on.

        Raises:
            OSError: The server cannot be started.
        """
        reading, writing = os.pipe()
        gpus = self._place.environment if self._place is not None else {}
        variables = {
            **child_environment(),
            **gpus,
            **environment,
            PARENT_VARIABLE: str(reading),
        }
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(  # noqa: ASYNC220 - see `watch_exit`
                    [*command, "--uds", str(socket)],
                    stdin=subprocess.DEVNULL,
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
        return LocalProcess(process, f"unix:{socket}", log, writing)
