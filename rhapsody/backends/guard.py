"""Executables whose parent is killed: a small process stands by and ends them."""

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

# Reads `?TICKS` when a child is about to be started, `+PID` when it is there, `!TICKS` when that
# is over, and `-PID` when its group has ended; kills what it was left with when its input ends,
# which happens whatever way the writer goes. A child whose writer ended between `?` and `+` it
# knows by its looks: an orphan like the guard itself, no older than that, that leads a group in
# the writer's session or in one of its own. A process id that was taken over by somebody else's
# process, because `-PID` never came, it knows by its parent. Nothing is imported that a bare
# Python has to look for.
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
            if int(line[1:]) in starting:  # else a guard was asked that is no more
                starting.remove(int(line[1:]))
        else:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    time.sleep(0.01)  # many lines at once, where there are many
time.sleep(0.01)  # a writer's files are closed just before its children get another parent
parents = writer, os.getppid()

def look(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return [int(fields[n]) for n in (1, 2, 3, 19)]

if starting and os.path.isdir("/proc/self"):
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if seen := look(pid):
            parent, group, its_session, started = seen
            if (
                pid == group != os.getpid()
                and parent in parents
                and its_session in (session, pid)
                and started >= min(starting)
            ):
                groups.add(pid)
for group in groups:
    seen = look(group)
    if seen is None or seen[0] in parents:
        try:
            os.killpg(group, 9)
        except OSError:
            pass
"""


class GuardedGroups(set[int]):
    """Process groups, by their leaders, that do not outlive this process even if it is killed.

    Children are started and added within `starting`. The guard is started with the first of them
    and ends with this process, or by `close`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        _all[id(self)] = self

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Guard what is started meanwhile even before it is added."""
        with self._lock:
            if self._guard is not None and self._guard.poll() is not None:
                _let_go(self._guard)  # somebody killed it
                self._guard = None
            if self._guard is None:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(os.getsid(0))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C is not for it
                )
                self._write("".join(f"+{pid}\n" for pid in self))
        now = _ticks()
        self._tell(f"?{now}\n")
        try:
            yield
        finally:
            self._tell(f"!{now}\n")

    def add(self, pid: int, /) -> None:
        """Guard a group."""
        super().add(pid)
        self._tell(f"+{pid}\n")

    def discard(self, pid: object, /) -> None:
        """Guard a group no more."""
        super().discard(pid)
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with self._lock:  # or a descriptor that is being closed might be another file's by now
            self._write(line)

    def _write(self, lines: str) -> None:
        guard = self._guard
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError):  # the guard has gone
                os.write(guard.stdin.fileno(), lines.encode())

    def close(self) -> None:
        """End the guard, and with it what is still in the set; waits for that."""
        with self._lock:
            guard, self._guard = self._guard, None
            if guard is not None:
                _let_go(guard)
        if guard is not None:
            guard.wait()

    def abandon(self) -> None:
        """Let go of all in a forked child: the guard has to see the end of its parent."""
        self._lock = threading.Lock()
        guard, self._guard = self._guard, None
        super().clear()
        if guard is not None:
            _let_go(guard)
            guard.returncode = 0  # nobody's child here


def _let_go(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()


_all: weakref.WeakValueDictionary[int, GuardedGroups] = weakref.WeakValueDictionary()


def _abandon_all() -> None:
    for groups in list(_all.values()):
        groups.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _ticks() -> int:
    """Return when it is, as the kernel writes down the starts of processes."""
    if sys.platform != "linux":
        return 0
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
