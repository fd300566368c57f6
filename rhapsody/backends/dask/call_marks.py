"""Marks of the calls that a Dask worker is running, in a file that survives the worker.

When a worker dies, Dask blames all tasks that it had been given, though most of them had not begun
to run. The marks tell which ones had. A file is locked by its worker, so an unlocked file is that
of a dead worker. The next worker that starts on the host reads it, or the program does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import uuid
from pathlib import Path

__all__ = ["CallMarks", "collect_marks", "private_directory"]

ADDRESS_BYTES = 256
"""Space for the worker's address at the beginning of a file."""

TOKEN_BYTES = 64
"""Space for the token of one call."""

NAME = re.compile("[0-9a-f]{32}")
"""The names of the files. The directory may have others, such as the lock of a `Scratch`."""

_own: set[str] = set()
"""Names of this process's files: the lock of a file does not keep its own process out."""


def private_directory(path: Path) -> Path:
    """Make a directory for marks, unless it exists.

    Raises:
        PermissionError: Another user made it.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    return path


class CallMarks:
    """The marks of one worker.

    Args:
        directory: Contains the files of all workers of a host.
        address: The worker's address.
    """

    def __init__(self, directory: Path, address: str) -> None:
        self._path = directory / uuid.uuid4().hex
        new = directory / f".{self._path.name}"
        self._file = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._free: list[int] = []
        self._slots = 0
        os.pwrite(self._file, address.encode()[:ADDRESS_BYTES], 0)
        # Unlike the lock of `flock`, this one is not inherited by a child that a task forks.
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        _own.add(self._path.name)
        new.rename(self._path)  # found only when it is locked

    def add(self, token: str) -> int:
        """Mark a call; return the number by which the mark is removed. Not thread-safe."""
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._slots = self._slots, self._slots + 1
        self._write(slot, token.encode())
        return slot

    def remove(self, slot: int) -> None:
        """Remove the mark of a call. Not thread-safe."""
        self._write(slot, b"")
        self._free.append(slot)

    def _write(self, slot: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not fail the call
            data = data.ljust(TOKEN_BYTES, b"\0")
            os.pwrite(self._file, data, ADDRESS_BYTES + slot * TOKEN_BYTES)

    def close(self) -> None:
        """Remove the file."""
        _own.discard(self._path.name)
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)


def collect_marks(directory: Path) -> dict[str, list[str]]:
    """Read and remove the files of dead workers.

    Returns:
        The tokens of the calls that each worker was running, by its address.
    """
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):  # the directory has been removed
        for path in sorted(directory.iterdir()):
            if NAME.fullmatch(path.name) and path.name not in _own:
                with contextlib.suppress(OSError):  # the worker lives, or another process was first
                    found.update([_take(path)])
    return found


def _take(path: Path) -> tuple[str, list[str]]:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        data = file.read()
    marks = data[ADDRESS_BYTES:]
    slots = [marks[start : start + TOKEN_BYTES] for start in range(0, len(marks), TOKEN_BYTES)]
    tokens = [token for slot in slots if (token := _text(slot))]
    return _text(data[:ADDRESS_BYTES]), tokens


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
