"""The end of a run: by the walltime of its batch job, or by a signal."""

from __future__ import annotations

from rhapsody.walltime.end import (
    END_VARIABLE,
    EXIT_RESUBMIT,
    WalltimeEnd,
    check_walltime,
    find_end,
    remaining_walltime,
)

__all__ = [
    "END_VARIABLE",
    "EXIT_RESUBMIT",
    "WalltimeEnd",
    "check_walltime",
    "find_end",
    "remaining_walltime",
]
