"""Private temporary directories, and the removal of those that killed programs have left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

from rhapsody.processes import SOCKET_DIRECTORY_BYTES

__all__ = ["Scratch"]

PREFIX = "rhapsody-"


class Scratch:
    """A private temporary directory, its path short enough for Unix sockets in it.

    It holds a file that is locked for as long as this process lives, however it ends, and names
    the machine, since other machines may see the directory but not the lock. Making one removes
    the user's directories beside it whose lock nobody holds any more.

    Args:
        name: Part of its name, to tell what it is for.
    """

    def __init__(self, name: str) -> None:
        prefix = f"{PREFIX}{name}-"
        path = tempfile.mkdtemp(prefix=prefix)
        if len(os.fsencode(path)) > SOCKET_DIRECTORY_BYTES:
            os.rmdir(path)
            path = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
        self.path = Path(path)
        self._lock = _take_lock(self.path)
        _remove_abandoned(self.path.parent)

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent; never raises; from any thread."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _lock_name() -> str:
    return f"owner@{socket.gethostname()}"


def _take_lock(directory: Path) -> int | None:
    """Lock a file in a new directory; None on file systems without locks.

    It gets its name when it is locked: under this name nobody ever finds it without an owner.
    """
    path = directory / "owner"
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.rename(directory / _lock_name())
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove_abandoned(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):  # somebody else's, or just removed
                    _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    if not entry.is_dir(follow_symlinks=False):
        return
    if entry.stat(follow_symlinks=False).st_uid != os.getuid():
        return
    lock = os.open(Path(entry.path, _lock_name()), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        os.close(lock)
