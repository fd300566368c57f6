"""The process of a worker, or of a rank, that Dragon starts."""

from __future__ import annotations

import errno
import os
import posix
from collections.abc import Callable
from functools import wraps
from typing import Any

from rhapsody.backends.dragon.stdio_relay import relay_stdio
from rhapsody.backends.workers import worker
from rhapsody.backends.workers.program_connection import connect
from rhapsody.backends.workers.worker import WorkerSetup

__all__ = ["keep_runtime_alive", "node_address", "serve"]


def node_address(run: str) -> str:
    """Return the Unix socket that the workers of this node connect to.

    It is an abstract socket. Its name has the node's id, because nodes that are simulated on one
    machine may share the namespace of abstract sockets.

    Args:
        run: The unique name of the backend's run.
    """
    from dragon.utils import host_id

    return f"\0{run}-{host_id():x}"


def serve(setup: WorkerSetup) -> None:
    """Run a worker in this process.

    Args:
        setup: The worker's setup; its address is the name of the backend's run.
    """
    # It stays in the process group of Dragon's local services, which notice the exits of no other
    # processes: they call `os.waitpid(0, ...)`. In another group its exit code would be lost, and
    # the runtime would wait for it in vain when it ends.
    keep_runtime_alive()
    relay_stdio()
    worker.serve(setup, connect(node_address(setup.address)))


def keep_runtime_alive() -> None:
    """Make `os.kill` and `os.killpg` refuse signals to the group of this process.

    The services of Dragon and the program itself are in that group, so that a task which ends the
    processes of its own group would end the program.
    """
    group = os.getpgrp()
    for name, own in (("kill", -group), ("killpg", group)):
        checked = _checked(getattr(os, name), group, (0, own))
        for module in (os, posix):  # a pickle of `os.kill` names the module `posix`
            setattr(module, name, checked)


def _checked(send: Callable[[int, int], None], group: int, refused: tuple[int, ...]) -> Any:
    @wraps(send)  # a pickle names it as before
    def checked(pid: int, sig: int, /) -> None:
        if sig and pid in refused and os.getpgrp() == group:
            raise PermissionError(
                errno.EPERM,
                "a worker shares its process group with the Dragon runtime and with your program; "
                "start processes in a group of their own (process_group=0, before Python 3.11 "
                "start_new_session=True) and signal that",
            )
        send(pid, sig)

    return checked
