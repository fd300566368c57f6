"""Starts a replica's server as a child process on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rhapsody.inference.launchers import LOG_TAIL_BYTES
from rhapsody.inference.placement import Gpu, Host, Place
from rhapsody.processes import GROUP, child_environment, end_group, group_exists
from rhapsody.waiting import done_within

__all__ = ["ChildProcess", "LocalLauncher", "local_gpus", "tail_of", "this_host"]

logger = logging.getLogger(__name__)

LEFTOVER_SECONDS = 5.0
"""How long the children of a server that has ended may take to end by themselves."""
LOOK_SECONDS = 0.02


class ChildProcess:
    """A server's process, in a process group of its own, its output in a log file."""

    def __init__(
        self, process: asyncio.subprocess.Process, address: str, log: Path, leash: int
    ) -> None:
        self.address = address
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
        end_group(self.pid, signal.SIGTERM)
        await done_within(self._process.wait(), grace)
        # Its helpers remove their shared memory when it is gone; nothing tells when they are done.
        rest = LEFTOVER_SECONDS if self._process.returncode is not None else 0.0
        while rest > 0 and group_exists(self.pid):
            await asyncio.sleep(LOOK_SECONDS)
            rest -= LOOK_SECONDS
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
        return tail_of(self._log)


def tail_of(log: Path) -> str:
    """Return the last lines of a log file; nothing where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").strip()
    return ""


class LocalLauncher:
    """Starts servers on this machine.

    Args:
        place: The GPUs they are to use; all where None.
    """

    def __init__(self, place: Place | None = None) -> None:
        self._place = place

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> ChildProcess:
        """Start a server.

        The server inherits the reading end of a pipe, named by RHAPSODY_PARENT_FD, whose other
        end this process holds: when this process ends, however, the server reads an end of file
        and exits.

        Args:
            command: Program and arguments, but for the address.
            environment: Variables on top of this process's.
            log: File for its standard output and error.
            socket: Unix socket to listen on.

        Raises:
            OSError: It cannot be started.
        """
        reading, writing = os.pipe()
        gpus = self._place.environment if self._place is not None else {}
        variables = {
            **child_environment(),
            **gpus,
            **environment,
            "RHAPSODY_PARENT_FD": str(reading),
        }
        try:
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    "--uds",
                    str(socket),
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
        return ChildProcess(process, f"unix:{socket}", log, writing)


def this_host() -> Host:
    """Describe this machine."""
    return Host("this machine", local_gpus())


def local_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of this machine that may be used, those with the most free memory first.

    CUDA_VISIBLE_DEVICES, where it is set, says which; otherwise `nvidia-smi` is asked.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1"))
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        gpus = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
        # By whole GiB: a little more or less in use is no reason for another order.
        by_use = sorted((int(used) // 1024, int(index)) for index, used in gpus)
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("nvidia-smi does not tell which GPUs there are: %s", error)
        return ()
    return tuple(index for _, index in by_use)
