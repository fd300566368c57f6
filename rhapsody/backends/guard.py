"""Executables whose parent is killed: a small process stands by and ends them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

__all__ = ["GuardedGroups"]

# Reads `+PID` and `-PID`, and kills what it was left with when its input ends, which happens
# whatever way the writer goes. Nothing is imported that a bare Python has to look for.
_GUARD = """
import os, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, 9)
    except OSError:
        pass
"""


class GuardedGroups(set[int]):
    """Process groups, by their leaders, that do not outlive this process even if it is killed.

    The guard is started with the first of them and ends with this process, or by `close`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None

    def add(self, pid: int, /) -> None:
        """Guard a group."""
        super().add(pid)
        with self._lock:
            if self._guard is None:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C is not for it
                )
        self._tell(f"+{pid}\n")

    def discard(self, pid: object, /) -> None:
        """Guard a group no more."""
        super().discard(pid)
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        guard = self._guard
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # the guard has gone
                os.write(guard.stdin.fileno(), line.encode())

    def close(self) -> None:
        """End the guard, and with it what is still in the set; waits for that."""
        with self._lock:
            guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.wait()
