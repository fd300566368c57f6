"""Segments: files in memory, or on disk when the memory is used up, that processes share."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from rhapsody.backends.data.account import Account

__all__ = ["DISK", "KEPT_BYTES", "MEMORY", "Folders", "Segments", "Span", "writer_of"]

MEMORY, DISK = "memory", "disk"
"""Where a segment is; the first word of its name."""

KEPT_BYTES = 1 << 30
"""Maximum size of the unused segments, and of the unused mappings, that a process keeps for later
data."""


class Span(NamedTuple):
    """A part of a segment.

    Attributes:
        segment: The segment's name.
        offset: Where the part begins, in bytes.
        length: Its length in bytes.
        readonly: Whether the object that it holds was read-only.
    """

    segment: str
    offset: int
    length: int
    readonly: bool


@dataclass(frozen=True)
class Folders:
    """The private directories of the segments of one backend on one node.

    Attributes:
        memory: A directory in shared memory.
        disk: A directory on disk, used when the memory is used up.
        limit: Maximum number of bytes in memory.
    """

    memory: str
    disk: str
    limit: int


def writer_of(segment: str) -> int:
    """Return the number of the process that wrote a segment."""
    return int(segment.split("-")[1])


def _size_of(segment: str) -> int:
    return int(segment.split("-")[3])


class Segments:
    """The files of the segments: created and removed by any process, within the bound on memory.

    A name has the number of the process that writes the segment, so that what a killed process left
    is found, and the segment's size in bytes.

    Args:
        folders: Where the files are.
    """

    def __init__(self, folders: Folders) -> None:
        self._folders = {MEMORY: folders.memory, DISK: folders.disk}
        # On disk: a shared memory that is full has no room for the account.
        self._account = Account(os.path.join(folders.disk, "account"), folders.limit)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close what this object holds open."""
        self._account.close()

    @property
    def used(self) -> int:
        """Bytes of memory in use."""
        return self._account.used

    def create(self, kind: str, writer: int, size: int) -> tuple[str, int] | None:
        """Create a segment.

        Args:
            kind: MEMORY or DISK.
            writer: The number of this process.
            size: Its size in bytes.

        Returns:
            Its name, and a file descriptor that the caller closes. None: the memory is used up.

        Raises:
            OSError: The file cannot be created.
        """
        name = f"{kind}-{writer}-{next(self._sequence)}-{size}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        if kind == DISK:
            return name, os.open(self.path(name), flags, 0o600)
        with self._account.locked():
            if not self._account.has_room(size):
                return None
            file = os.open(self.path(name), flags, 0o600)
            try:
                os.ftruncate(file, size)
            except BaseException:
                os.close(file)
                os.unlink(self.path(name))
                raise
            self._account.add(size)
        return name, file

    def path(self, name: str) -> str:
        """Return the path of a segment's file."""
        return os.path.join(self._folders[name.partition("-")[0]], name)

    def open(self, name: str) -> int:
        """Open a segment for reading; return the file descriptor."""
        return os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, name: str) -> memoryview:
        """Return a copy of a segment's data."""
        with os.fdopen(self.open(name), "rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
        return memoryview(data)

    def open_to_write(self, name: str) -> int:
        """Open a segment for writing; return the file descriptor."""
        return os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def remove(self, name: str, unused: bool = False) -> None:
        """Remove a segment, if it exists.

        Args:
            name: Its name.
            unused: Whether nobody will read it any more: its memory is freed at once. Otherwise it
                is freed when nothing maps the segment.
        """
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(DISK):
                os.unlink(self.path(name))
                return
            with contextlib.ExitStack() as stack:
                file = self._open_to_free(name)
                if file is not None:
                    stack.callback(os.close, file)  # frees the memory, without the lock
                with self._account.locked():
                    os.unlink(self.path(name))
                    self._account.add(-_size_of(name))
                if file is not None and unused:
                    os.ftruncate(file, 0)  # mappings kept for later data have no use for it

    def _open_to_free(self, name: str) -> int | None:
        try:
            return self.open_to_write(name)
        except FileNotFoundError:
            raise
        except OSError:  # a task has used up the file descriptors
            return None

    def remove_all_of(self, writer: int, known: Container[str]) -> None:
        """Remove what a process that was killed has written and nobody knows of."""
        for kind, folder in self._folders.items():
            for name in os.listdir(folder):
                if name.startswith(f"{kind}-{writer}-") and name not in known:
                    self.remove(name)
        self._recount()

    def _recount(self) -> None:
        """Correct the account: a process may have been killed between a change and its entry."""
        with self._account.locked():
            names = os.listdir(self._folders[MEMORY])
            self._account.replace(
                sum(_size_of(name) for name in names if name.startswith(f"{MEMORY}-"))
            )
