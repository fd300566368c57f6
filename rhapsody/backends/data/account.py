"""The account of the memory that segments use, shared by all processes that write segments."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator

__all__ = ["Account"]

_BYTES = struct.Struct("<q")


class Account:
    """The number of bytes in use, in a file that every process opens.

    The kernel takes the lock from a process that is killed while it has it.

    Args:
        path: The file; it is created if it does not exist.
        limit: Maximum number of bytes in use.
    """

    def __init__(self, path: str, limit: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)
        self._limit = limit
        self._threads = threading.Lock()  # threads of one process share the lock of the file

    def close(self) -> None:
        """Close the file; other calls raise a ValueError from now on. Idempotent."""
        with self._threads:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other threads and processes from changing the account."""
        with self._threads:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    @property
    def used(self) -> int:
        """Bytes in use."""
        data = os.pread(self._file, _BYTES.size, 0)
        return int(_BYTES.unpack(data)[0]) if data else 0

    def has_room(self, size: int) -> bool:
        """Return whether so many more bytes may be used; call it with the lock."""
        return self.used + size <= self._limit

    def add(self, size: int) -> None:
        """Add bytes, or subtract a negative number of them; call it with the lock."""
        self.replace(max(0, self.used + size))

    def replace(self, size: int) -> None:
        """Set the number of bytes in use; call it with the lock."""
        os.pwrite(self._file, _BYTES.pack(size), 0)
