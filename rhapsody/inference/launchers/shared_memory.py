"""Shared memory of a server: found while its processes run, and removed after they were killed.

Python's own tracker of shared memory belongs to the server's process group, and is killed with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["remove_segments", "segments_of"]

FOLDER = "/dev/shm/"
PREFIX = f"{FOLDER}psm_"
"""The names that `multiprocessing.shared_memory` chooses."""


def segments_of(group: int) -> set[str]:
    """Return the files of shared memory that the processes of a group have mapped.

    Args:
        group: The process group.
    """
    segments: set[str] = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended, or is another user's
                if os.getpgid(int(name)) == group:
                    segments.update(_mapped(Path("/proc", name, "maps").read_text()))
    return segments


def _mapped(maps: str) -> Iterable[str]:
    for line in maps.splitlines():
        _, found, name = line.partition(PREFIX)
        if found and not name.endswith(" (deleted)"):
            yield f"{PREFIX}{name}"


def remove_segments(segments: Iterable[str]) -> None:
    """Remove files of shared memory, unless they are gone already."""
    for segment in segments:
        with contextlib.suppress(OSError):
            os.unlink(segment)
