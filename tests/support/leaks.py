"""What a test session must not leave behind: processes, sockets, threads and files.

``look()`` lists what is there now; ``left_behind(before)`` waits a little for things to end and
lists what was not there before. Only what is ours counts: our descendants, processes that carry
the session's mark, our own threads and sockets, and files with our prefix.
"""

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

# In the environment of every process that a test starts, so that an orphan can be told from a
# stranger after its parent is gone.
SESSION_VARIABLE = "RHAPSODY_TEST_SESSION"

# The standard library keeps one of each for the life of a process that uses process pools.
STDLIB_HELPERS = (
    "from multiprocessing.forkserver import main",
    "from multiprocessing.resource_tracker import main",
)

Seen = dict[Hashable, str]


def look() -> Seen:
    """List everything of ours that exists now: an identity, and words for the reader."""
    return dict([*_processes(), *_inet_sockets(), *_unix_sockets(), *_threads(), *_files()])


def left_behind(before: Seen, wait: float = 5.0) -> list[str]:
    """Describe what exists now and did not before.

    Args:
        before: What ``look()`` returned at the start.
        wait: Seconds to give to what is still ending.
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
        except psutil.Error:  # it ended, or is another user's
            continue
    found.pop(me.pid, None)
    for process in found.values():
        try:
            parent = process.ppid()
            identity = ("process", process.pid, process.create_time())
            if process.status() == psutil.STATUS_ZOMBIE:
                command = f"{process.name()} (ended, but nobody waited for it)"
            else:
                command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        # The forkserver's own children look just like it: only a direct child of ours is it.
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
    if not table.exists():  # psutil cannot tell a listening Unix socket from another either
        return
    ours = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # the descriptor that listed the folder
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
            # By object: an identifier may be used again by a later thread.
            yield ("thread", thread), f"thread {thread.name!r} (daemon: {thread.daemon})"


def _files() -> Iterator[tuple[Hashable, str]]:
    # The temporary folder is the session's own (conftest); shared memory has only one place.
    for folder in {Path(tempfile.gettempdir()), Path("/dev/shm")}:
        for path in folder.glob(f"{PREFIX}*"):
            yield ("file", path), f"file {path}"
