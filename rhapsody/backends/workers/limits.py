"""A worker process: its limits and directory, which tasks may change, and the memory they use."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any

__all__ = ["PeakMemory", "ResourceLimits", "WorkingDirectory"]

_KINDS = tuple(
    sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})
)


class ResourceLimits:
    """The limits of this process at the time when the object is made."""

    def __init__(self) -> None:
        self._limits = {kind: resource.getrlimit(kind) for kind in _KINDS}
        self._watched = self._changed = False

    def watch(self) -> None:
        """Make `restore` cost nothing as long as this process sets no limit. For good."""
        self._watched = True
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("resource.setrlimit", "resource.prlimit"):
            self._changed = True

    def restore(self) -> bool:
        """Restore the limits; only a privileged process can raise a hard limit again.

        Returns:
            Whether all limits are as they were.
        """
        if self._watched and not self._changed:
            return True
        restored = True
        for kind, (soft, hard) in self._limits.items():
            if (present_limits := resource.getrlimit(kind)) == (soft, hard):
                continue
            present_hard = present_limits[1]
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (soft, hard))
                continue
            restored = False
            with contextlib.suppress(ValueError, OSError):
                at_most = (
                    present_hard if soft == resource.RLIM_INFINITY else min(soft, present_hard)
                )
                resource.setrlimit(kind, (at_most, present_hard))
        self._changed = False
        return restored


class PeakMemory:
    """The most resident memory that this process has used since `reset`. Linux only."""

    def __init__(self) -> None:
        self._reset: int | None = None
        self._status = -1
        self._other = 0
        with contextlib.suppress(OSError):  # not Linux, or not permitted
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY)
            self._status = os.open("/proc/self/status", os.O_RDONLY)

    def reset(self, other: int = 0) -> None:
        """Forget the earlier maximum.

        Args:
            other: Bytes of resident memory that are not counted.
        """
        self._other = other
        if self._reset is not None:
            try:
                os.pwrite(self._reset, b"5", 0)  # see proc_pid_clear_refs(5)
            except OSError:
                self.close()

    def read(self) -> int | None:
        """Return the maximum in bytes; None if it is not known."""
        if self._reset is None:
            return None
        _, _, rest = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        return max(0, int(rest.split(None, 1)[0]) * 1024 - self._other) if rest else None

    def close(self) -> None:
        """Release the descriptors; from now on the maximum is not known."""
        for descriptor in (self._reset, self._status):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._reset, self._status = None, -1


class WorkingDirectory:
    """The working directory of this process at the time when the object is made.

    Made once in a process: Python calls it at every event of its audit, for good.
    """

    def __init__(self) -> None:
        self._path: str | None = None
        with contextlib.suppress(FileNotFoundError):  # it was removed
            self._path = os.getcwd()
        self._changed = False
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.chdir":  # also that of `os.fchdir`
            self._changed = True

    def restore(self) -> None:
        """Go back there. Costs nothing as long as this process does not change its directory."""
        if self._changed and self._path is not None:
            with contextlib.suppress(OSError):  # it was removed
                os.chdir(self._path)
            self._changed = False
