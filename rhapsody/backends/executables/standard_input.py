"""The standard input of an executable: the option `stdin`, and the file that the child reads."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from rhapsody.errors import TaskExecutionError, UnsupportedTaskError

__all__ = ["input_of", "opened_input"]


def input_of(uid: str, given: Any) -> bytes | Path | None:
    """Return the option `stdin` as bytes or a path.

    Raises:
        UnsupportedTaskError: It is neither text, bytes nor a path.
    """
    if given is None or isinstance(given, bytes):
        return given
    if isinstance(given, str):
        try:
            return given.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedTaskError(
                uid, f"'stdin' is text that UTF-8 cannot encode; pass bytes ({error})"
            ) from None
    if isinstance(given, os.PathLike):
        return Path(os.fsdecode(given))
    raise UnsupportedTaskError(
        uid, f"'stdin' must be a str, bytes, or the pathlib.Path of a file, got {given!r:.60}"
    )


@contextlib.contextmanager
def opened_input(uid: str, given: bytes | Path | None, cwd: str | None) -> Iterator[Any]:
    """Yield the source of standard input: a file, also for input that is given as bytes.

    A child reads a file at its own pace, without a thread that writes into a pipe.

    Raises:
        TaskExecutionError: Opening the file might wait for ever.
        OSError: The file cannot be opened.
    """
    if given is None:
        yield subprocess.DEVNULL
    elif isinstance(given, Path):
        path = Path(cwd or "", given)
        if _is_named_pipe(path):
            reason = (
                f"its standard input {str(path)!r} is a named pipe, which cannot be opened before "
                "another process writes to it; pass a file"
            )
            raise TaskExecutionError(uid, reason)
        with path.open("rb") as file:
            yield file
    else:
        with _memory_file() as file:
            file.write(given)
            file.seek(0)
            yield file


def _is_named_pipe(path: Path) -> bool:
    # `/dev/stdin` and `/dev/fd/3` may be pipes that are open already; their real path, such as
    # `/proc/7/fd/pipe:[123]`, does not exist.
    try:
        return stat.S_ISFIFO(os.lstat(os.path.realpath(path)).st_mode)
    except OSError:
        return False


def _memory_file() -> BinaryIO:
    """Return an empty file without a name."""
    if hasattr(os, "memfd_create"):  # Linux
        return open(os.memfd_create("rhapsody-stdin"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())
