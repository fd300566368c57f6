"""File descriptors of this process, of which every executable that runs needs a few."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

__all__ = ["are_exhausted", "available", "executables_within_limit"]

PER_EXECUTABLE = 4
"""Descriptors of a running executable: two pipes or files, its pidfd, and one while it starts."""

RESERVE = 128
"""Descriptors that are left for everything else in the process."""


def executables_within_limit(wanted: int) -> int:
    """Return how many executables can run at once; raise this process's soft limit if needed.

    Args:
        wanted: The number to make possible, up to the hard limit.
    """
    needed = wanted * PER_EXECUTABLE + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - RESERVE) // PER_EXECUTABLE))


def are_exhausted(error: BaseException | None) -> bool:
    """Return whether an error says that there are no descriptors left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def available() -> bool:
    """Return whether an executable could be started now."""
    opened: list[int] = []
    try:
        for _ in range(2 * PER_EXECUTABLE):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - may fail midway
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True
