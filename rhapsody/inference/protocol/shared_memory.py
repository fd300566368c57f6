"""Shared memory of a server: found while its processes run, and removed after they were killed.

It includes semaphores. Python's own tracker of both belongs to the server's process group, and is
killed with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PREFIXES", "remove_segments", "segments_of"]

FOLDER = "/dev/shm/"
PREFIXES = ("psm_", "sem.mp-")
"""How the names begin that `multiprocessing` chooses for shared memory and for semaphores."""


def segments_of(group: int, prefixes: tuple[str, ...] = PREFIXES) -> set[str]:
    """Return the files of shared memory that the processes of a group have mapped.

    Args:
        group: The process group.
        prefixes: How their names begin.
    """
    inodes: set[int] = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended, or is another user's
                if os.getpgid(int(name)) == group:
                    inodes.update(_mapped(Path("/proc", name, "maps").read_text()))
    return set(_files_of(inodes, prefixes)) if inodes else set()


def _mapped(maps: str) -> Iterable[int]:
    for line in maps.splitlines():
        if FOLDER in line:
            yield int(line.split()[4])


def _files_of(inodes: set[int], prefixes: tuple[str, ...]) -> Iterable[str]:
    # Not by the names in the maps: that of a semaphore was used only while it was created.
    with os.scandir(FOLDER) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes) and entry.inode() in inodes:
                yield entry.path


def remove_segments(segments: Iterable[str]) -> None:
    """Remove files of shared memory, unless they are gone already."""
    for segment in segments:
        with contextlib.suppress(OSError):
            os.unlink(segment)
