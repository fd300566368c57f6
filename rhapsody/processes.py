"""Child processes: their environment, and process groups that end as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

__all__ = [
    "GRACE_SECONDS",
    "GROUP",
    "REPLICA_KEY_VARIABLE",
    "SECRET_VARIABLES",
    "SOCKET_DIRECTORY_BYTES",
    "child_environment",
    "end_forked_child",
    "end_if_forked",
    "ending_group",
    "group_exists",
    "has_secrets",
    "signal_group",
    "wait_measured",
    "watch_exit",
]

GRACE_SECONDS = 1.0
"""Time between SIGTERM and SIGKILL when an executable is ended."""

REPLICA_KEY_VARIABLE = "RHAPSODY_REPLICA_KEY"
"""Holds the key that every request to a model server must carry."""

SECRET_VARIABLES = frozenset({"RHAPSODY_API_KEY", "RHAPSODY_ENDPOINT_KEY", REPLICA_KEY_VARIABLE})
"""Environment variables that are never passed to users' tasks."""

SOCKET_DIRECTORY_BYTES = 90
"""Longest path of a directory for sockets: a socket's path has 108 bytes at most (macOS: 104)."""

# One signal to a child's own process group reaches the child's children too. Python 3.10 has no
# `process_group`; a new session has the same effect.
GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)
"""Arguments of a subprocess call that start the child in a new process group."""


def child_environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return a copy of this process's environment with changes and without secrets.

    Args:
        changes: Variables to set; a variable whose value is None is removed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    for key, value in (changes or {}).items():
        if value is None:
            environment.pop(key, None)
        else:
            environment[key] = str(value)
    return environment


def has_secrets() -> bool:
    """Return whether this process's environment has variables that `child_environment` removes."""
    return any(name in os.environ for name in SECRET_VARIABLES)


def end_forked_child(error: BaseException | None) -> NoReturn:
    """End this process: a child that a function forked, and that came back from the function.

    The program that called the function must not go on in two processes. The exit code is that of
    a script that ends in the same way.

    Args:
        error: The exception that the function raised in the child. None: it returned.
    """
    code: Any = 0 if error is None else 1
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            code = error.code or 0
        elif error is not None:
            traceback.print_exception(type(error), error, error.__traceback__)
        sys.stdout.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


def end_if_forked(pid: int, error: BaseException | None = None) -> None:
    """End this process by `end_forked_child` if its id is not the one from before a function."""
    if os.getpid() != pid:
        end_forked_child(error)


def signal_group(pid: int, sig: int) -> None:
    """Send a signal to the process group that a child leads, if the group still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sig)


def group_exists(pid: int) -> bool:
    """Return whether the process group that a child led still has a process."""
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def ending_group(pid: int) -> Iterator[float]:
    """End a process group: SIGTERM on entry, SIGKILL on exit.

    The body waits until the group's leader has ended, but no longer than the grace period.

    Args:
        pid: Process id of the group's leader.

    Yields:
        The grace period in seconds.
    """
    signal_group(pid, signal.SIGTERM)
    try:
        yield GRACE_SECONDS
    finally:
        # Also if the leader has ended: one of its children may ignore SIGTERM.
        signal_group(pid, signal.SIGKILL)


def wait_measured(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the exit of a child, and return the most resident memory that it used, in bytes.

    The value is the peak of one process: of the child, or of the largest of the processes that the
    child has waited for. Linux includes the memory of the program that started the child (`exec`
    keeps the maximum), so the peak of a child that stays below that of this program is not known.

    Returns:
        None if it is not known.
    """
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # another thread waited for it
        process.wait()
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "linux" or usage.ru_maxrss <= own:
        return None
    return usage.ru_maxrss * 1024


def watch_exit(
    process: subprocess.Popen[bytes],
    on_exit: Callable[[], None],
    wait_for: Callable[[subprocess.Popen[bytes]], Any] = subprocess.Popen.wait,
) -> None:
    """Call a function on the running loop when a child has exited; its exit code is known then.

    asyncio's own subprocesses depend on the event loop policy of the program.

    Args:
        process: The child.
        on_exit: The function.
        wait_for: Waits for the exit of a process, and sets its exit code.
    """
    loop = asyncio.get_running_loop()

    def wait() -> None:
        wait_for(process)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(on_exit)

    def reap(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        wait_for(process)
        on_exit()

    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # macOS, Linux before 5.3
        name = f"rhapsody-child-{process.pid}"
        threading.Thread(target=wait, name=name, daemon=True).start()
    else:
        loop.add_reader(descriptor, reap, descriptor)
