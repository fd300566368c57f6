"""The guard: a small process that kills executables if their parent process is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

__all__ = ["GuardedGroups"]

# The guard's protocol, one command per line on its stdin:
#   ?TICKS  a child is about to be started, at this time
#   +PID    the child has started; it leads a process group
#   !TICKS  the start is over
#   -PID    the group has ended
# When its stdin is closed, however this process ended, the guard kills all remaining groups. A
# child that was being started has no `+PID` yet. The guard finds it in /proc: it leads a process
# group, in this process's session or its own; its parent is this process or the guard's own new
# parent; and it is no older than the `?`. If a `-PID` was lost, the process id may belong to
# another program by now; the guard recognises this by the parent. The guard imports only modules
# built into Python, so that it starts quickly.
_GUARD = """
import os, sys, time
writer, session = map(int, sys.argv[1:])
groups, starting, rest = set(), [], b""
while data := os.read(0, 65536):
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        if line[:1] == b"?":
            starting.append(int(line[1:]))
        elif line[:1] == b"!":
            if int(line[1:]) in starting:  # else a guard before this one got the `?`
                starting.remove(int(line[1:]))
        else:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    time.sleep(0.01)  # to read many lines at once under load

def is_parent(pid):
    # Asked after the parent of another child was read: all children get their new parent at one
    # moment, which comes after the end of stdin, and on a busy machine long after it.
    return pid in (writer, os.getppid())

def status(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return [int(fields[n]) for n in (1, 2, 3, 19)]

if starting and os.path.isdir("/proc/self"):
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if found := status(pid):
            parent, group, its_session, started = found
            if (
                pid == group != os.getpid()
                and is_parent(parent)
                and its_session in (session, pid)
                and started >= min(starting)
            ):
                groups.add(pid)
for group in groups:
    found = status(group)
    if found is None or is_parent(found[0]):
        try:
            os.killpg(group, 9)
        except OSError:
            pass
"""


class GuardedGroups(set[int]):
    """A set of process groups that do not outlive this process, even if it is killed.

    A group is identified by the process id of its leader. Start children and add them within
    `starting`. The guard process starts with the first child, and ends with this process or by
    `close`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        self._starts = 0
        _all[id(self)] = self

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Guard a child that the body starts, even before it is added."""
        with self._lock:
            if self._guard is not None and self._guard.poll() is not None:
                _close_input(self._guard)  # it was killed
                self._guard = None
            if self._guard is None:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(os.getsid(0))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C must not end it
                )
                self._write("".join(f"+{pid}\n" for pid in self))
            self._starts += 1
        now = _ticks()
        self._send(f"?{now}\n")
        try:
            yield
        finally:
            with self._lock:
                self._starts -= 1
                self._write(f"!{now}\n")

    def add(self, pid: int, /) -> None:
        """Add a group to guard."""
        super().add(pid)
        self._send(f"+{pid}\n")

    def discard(self, pid: object, /) -> None:
        """Remove a group, which has ended."""
        super().discard(pid)
        self._send(f"-{pid}\n")

    def _send(self, line: str) -> None:
        with self._lock:  # a closed descriptor may be reused for another file
            self._write(line)

    def _write(self, lines: str) -> None:
        guard = self._guard
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError):  # the guard has ended
                os.write(guard.stdin.fileno(), lines.encode())

    def close(self) -> None:
        """End the guard, which kills the remaining groups, and wait for its end."""
        with self._lock:
            guard, self._guard = self._guard, None
            if guard is not None:
                if not self and not self._starts:
                    guard.kill()  # it has nothing to do, and takes 20 ms to end by itself
                _close_input(guard)
        if guard is not None:
            guard.wait()

    def close_in_forked_child(self) -> None:
        """Release the guard in a forked child, so that the guard notices the parent's end."""
        self._lock = threading.Lock()
        guard, self._guard = self._guard, None
        self._starts = 0
        super().clear()
        if guard is not None:
            _close_input(guard)
            guard.returncode = 0  # it is not a child of this process


def _close_input(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()


_all: weakref.WeakValueDictionary[int, GuardedGroups] = weakref.WeakValueDictionary()


def _close_all_in_forked_child() -> None:
    for groups in list(_all.values()):
        groups.close_in_forked_child()


os.register_at_fork(after_in_child=_close_all_in_forked_child)


def _ticks() -> int:
    """Return the time in the unit in which the kernel records the starts of processes."""
    if sys.platform != "linux":
        return 0
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
