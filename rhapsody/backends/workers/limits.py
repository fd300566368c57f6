"""Resource limits of a worker process, which its tasks may change."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Any

__all__ = ["ResourceLimits"]

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
