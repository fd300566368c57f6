"""Private temporary directories, and the removal of those that killed programs left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

from rhapsody.processes import SOCKET_DIRECTORY_BYTES

__all__ = ["Scratch", "is_shared", "remove_abandoned"]

PREFIX = "rhapsody-"

RETRY_SECONDS = 0.02
"""Time between attempts to lock a directory."""


class Scratch:
    """A private temporary directory with a path short enough for Unix sockets.

    It holds a file that this process keeps locked until it ends, even if it is killed. The file's
    name contains the host name, since another machine may see the directory but not the lock. The
    constructor removes this user's directories beside the new one that no process has locked.

    Args:
        name: A part of the directory's name, to say what it is for.
        folder: Where to create it, if not in the temporary folder; the path may then be long.
    """

    def __init__(self, name: str, folder: str | None = None) -> None:
        prefix = f"{PREFIX}{name}-"
        path = tempfile.mkdtemp(prefix=prefix, dir=folder)
        if folder is None and len(os.fsencode(path)) > SOCKET_DIRECTORY_BYTES:
            os.rmdir(path)
            path = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
        self.path = Path(path)
        self._lock = _take_lock(self.path)
        _remove_abandoned(self.path.parent)

    def remove(self) -> None:
        """Remove the directory and its content. Idempotent, thread-safe, never raises."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _lock_name() -> str:
    return f"owner@{socket.gethostname()}"


def _take_lock(directory: Path) -> int | None:
    """Lock a file in a new directory; return None on file systems without locks.

    The file gets its final name after it is locked: under that name it is never found unlocked.
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
                remove_abandoned(Path(entry.path))


def remove_abandoned(directory: Path, seconds: float = 0.0) -> bool:
    """Remove a directory of this user that no process has locked.

    Args:
        directory: A directory that a `Scratch` created.
        seconds: How long to try again if it is locked.

    Returns:
        False if it was not removed: it is locked, or it is no such directory.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _lock_and_remove(directory)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_SECONDS)
        except OSError:  # another user's directory, or removed meanwhile
            return False
        else:
            return True


def is_shared(directory: Path) -> bool:
    """Return whether this process can use a directory that a `Scratch` of another one created.

    False on another host, and for another user.
    """
    access = os.R_OK | os.W_OK | os.X_OK
    return (directory / _lock_name()).exists() and os.access(directory, access)


def _lock_and_remove(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{directory} is not a directory of this user")
    lock = os.open(directory / _lock_name(), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in directory.iterdir():
            if path.name != _lock_name():
                _remove(path)
        # Last: processes of the killed program may still write there, and a directory without
        # this file would never be found again.
        if len(list(directory.iterdir())) > 1:
            raise BlockingIOError(f"other processes still write to {directory}")
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
