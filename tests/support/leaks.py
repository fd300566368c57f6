"""Finds leaks of a test session: processes, sockets, threads and files.

``look()`` lists what exists now. ``left_behind(before)`` waits a few seconds and lists what did not
exist before. It considers descendants of this process, processes with the session's mark, threads
and sockets of this process, and files with the prefix.
"""

import contextlib
import fcntl
import gc
import os
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

import psutil

PREFIX = "rhapsody-"
SERVICE_THREAD = "rhapsody-service"
SERVICE_IO_THREADS = "rhapsody-io_"

# Dask keeps one thread for heavy pickling for the life of the process.
DASK_THREADS = "Dask-Offload_"

# In the environment of every process that a test starts. It identifies an orphan after its parent
# has ended.
SESSION_VARIABLE = "RHAPSODY_TEST_SESSION"

# The standard library and loky keep one of each for the life of a process that uses their pools.
STDLIB_HELPERS = (
    "from loky.backend.resource_tracker import main",
    "from multiprocessing.forkserver import main",
    "from multiprocessing.resource_tracker import main",
)

Seen = dict[Hashable, str]


def look() -> Seen:
    """Return a description of every process, socket, thread and file, by identity."""
    return dict([*_processes(), *_inet_sockets(), *_unix_sockets(), *_threads(), *_files()])


def left_behind(before: Seen, wait: float = 20.0) -> list[str]:
    """Return descriptions of what exists now and did not exist before.

    Args:
        before: Result of ``look()`` at the start.
        wait: Seconds to wait for things that are still ending.
    """
    deadline = time.monotonic() + wait
    while True:
        gc.collect()
        left = [words for identity, words in look().items() if identity not in before]
        if not left or time.monotonic() > deadline:
            return sorted(left)
        time.sleep(0.1)


def _processes() -> Iterator[tuple[Hashable, str]]:
    me = psutil.Process()
    found = {process.pid: process for process in me.children(recursive=True)}
    mark = os.environ.get(SESSION_VARIABLE)
    for process in psutil.process_iter():
        try:
            if mark and process.environ().get(SESSION_VARIABLE) == mark:
                found.setdefault(process.pid, process)
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    found.pop(me.pid, None)
    for process in found.values():
        try:
            parent = process.ppid()
            identity = ("process", process.pid, process.create_time())
            if process.status() == psutil.STATUS_ZOMBIE:
                command = f"{process.name()} (ended, but not waited for)"
            else:
                command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        # The forkserver's children have the same command: only a direct child is the forkserver.
        if parent == me.pid and any(helper in command for helper in STDLIB_HELPERS):
            continue
        yield identity, f"process {identity[1]}, child of {parent}: {command[:200]}"


def _inet_sockets() -> Iterator[tuple[Hashable, str]]:
    for connection in psutil.Process().net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN:
            host, port = connection.laddr
            yield ("socket", host, port), f"socket listening on {host}:{port}"


def _unix_sockets() -> Iterator[tuple[Hashable, str]]:
    table = Path("/proc/net/unix")
    if not table.exists():  # psutil does not tell listening Unix sockets from others
        return
    ours = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # the descriptor of this listing
            continue
        if target.startswith("socket:["):
            ours.add(target[len("socket:[") : -1])
    for line in table.read_text(errors="replace").splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 0x10000.
        fields = line.split(maxsplit=7)
        inode, listening = fields[6], int(fields[3], 16) & 0x10000
        if listening and inode in ours:
            path = fields[7] if len(fields) > 7 else "(no path)"
            yield ("unix socket", inode), f"socket listening on {path}"


def _threads() -> Iterator[tuple[Hashable, str]]:
    service_allowed = True
    for thread in threading.enumerate():
        if thread.name == SERVICE_THREAD and thread.daemon and service_allowed:
            service_allowed = False
            continue
        if thread.name.startswith((SERVICE_IO_THREADS, DASK_THREADS)):
            continue
        if not thread.daemon or thread.name.startswith("rhapsody"):
            # By object, because a later thread may reuse an identifier.
            yield ("thread", thread), f"thread {thread.name!r} (daemon: {thread.daemon})"


def _files() -> Iterator[tuple[Hashable, str]]:
    # The session has its own temporary folder (see conftest), but shared memory is global.
    for folder in {Path(tempfile.gettempdir()), Path("/dev/shm")}:
        for path in folder.glob(f"{PREFIX}*"):
            # Another Rhapsody may remove its directory in shared memory while it is looked at.
            with contextlib.suppress(FileNotFoundError):
                if not _is_used_by_another_process(path):
                    yield ("file", path), f"file {path}"


def _is_used_by_another_process(path: Path) -> bool:
    """Return whether a directory is locked by its owner, and this process is not the owner."""
    own = {_target(descriptor) for descriptor in Path("/proc/self/fd").iterdir()}
    for lock in path.glob("owner@*"):
        if str(lock) in own:
            return False
        with contextlib.suppress(OSError), lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _target(descriptor: Path) -> str:
    with contextlib.suppress(OSError):  # the descriptor of this listing
        return os.readlink(descriptor)
    return ""
