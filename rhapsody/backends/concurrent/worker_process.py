"""The process of a worker on this machine: the command that starts it, and its first steps."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
from dataclasses import dataclass
from multiprocessing import process, resource_tracker, spawn

from rhapsody.backends.workers import worker
from rhapsody.backends.workers.worker import WorkerSetup

__all__ = ["ProcessSetup", "command", "serve"]

BOOTSTRAP = """
import pickle, sys
path, setup = pickle.load(sys.stdin.buffer)
sys.path[:] = path
from rhapsody.backends.concurrent.worker_process import serve
serve(pickle.loads(setup))
"""


@dataclass(frozen=True)
class ProcessSetup:
    """What a worker's process inherits from the program.

    Attributes:
        worker: The worker's setup.
        connection: Descriptor of the socket that connects it to the program.
        stderr: Descriptor of the program's standard error, which it gets once it is ready; until
            then the program reads what it writes. None: the program has none.
        resource_tracker: Descriptor of multiprocessing's resource tracker. With one of its own, a
            worker's end would remove the shared memory of others that its tasks had attached.
        authkey: multiprocessing's key, for managers of the program in the arguments of tasks.
        argv: The program's `sys.argv`.
    """

    worker: WorkerSetup
    connection: int
    stderr: int | None
    resource_tracker: int | None
    authkey: bytes
    argv: tuple[str, ...]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the process inherits."""
        return tuple(
            descriptor
            for descriptor in (self.connection, self.stderr, self.resource_tracker)
            if descriptor is not None
        )

    def encode(self) -> bytes:
        """Return the standard input of the process."""
        return pickle.dumps((list(self.worker.path), pickle.dumps(self)))


def command() -> list[str | bytes]:
    """Return the command of a worker: a clean interpreter with the options of the present one.

    Raises:
        RuntimeError: This program cannot start an interpreter.
    """
    if getattr(sys, "frozen", False) or not spawn.get_executable():
        raise RuntimeError(
            "worker processes need a Python interpreter, and this program is frozen or embedded in "
            "another; use threads"
        )
    # Without multiprocessing's own program at the end: the options -W, -X, -O and so on.
    return [*spawn.get_command_line()[:-3], "-c", BOOTSTRAP]


def serve(setup: ProcessSetup) -> None:
    """Run a worker in this process."""
    for descriptor in setup.descriptors:
        os.set_inheritable(descriptor, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # There is no public way, and multiprocessing's own processes do the same.
    resource_tracker._resource_tracker._fd = setup.resource_tracker  # type: ignore[attr-defined]
    process.current_process().authkey = setup.authkey
    sys.argv = list(setup.argv)
    process.current_process().name = f"rhapsody-worker-{setup.worker.number}"
    _take_stderr(setup.stderr)
    worker.serve(setup.worker, socket.socket(fileno=setup.connection))


def _take_stderr(descriptor: int | None) -> None:
    if descriptor is None:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
