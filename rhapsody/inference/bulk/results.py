"""Files of results in JSON lines: continued after an interrupt, appended to as results come."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rhapsody.errors import ConfigurationError

__all__ = ["Result", "Results", "Take", "open_alone", "replacing"]

Result = Mapping[str, Any]
Take = Callable[[Result], bool]


class Results:
    """A file of results that is appended to, one JSON object in a line.

    It is continued if it exists. An incomplete last line, as a killed program leaves it, is
    removed, and so are the results that are to be computed again. The file changes at once or not
    at all. Until it is closed, nobody else can open it in this way.

    Args:
        path: The file; it need not exist.
        take: Called with each result of an earlier run; returns whether it stays in the file. It
            raises KeyError or TypeError for an object that is no result.
        noun: What a line is, for the error.

    Raises:
        ConfigurationError: A line is no result: the file is another one. Or another run writes to
            the file.
    """

    def __init__(self, path: Path, take: Take, noun: str = "a result of a batch") -> None:
        self._file = open_alone(path)
        try:
            self._read(path, take, noun)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path, take: Take, noun: str) -> None:
        end, removed = 0, []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    if not take(json.loads(line)):
                        removed.append(number)
                except (ValueError, KeyError, TypeError):
                    raise ConfigurationError(
                        f"line {number} of {path} is not {noun}; name another file"
                    ) from None
                end += len(line)
        if removed:
            self._copy_without(path, frozenset(removed), end)
        else:
            os.truncate(path, end)

    def _copy_without(self, path: Path, removed: frozenset[int], end: int) -> None:
        with replacing(path) as copy, path.open("rb") as file:
            copied = 0
            for number, line in enumerate(file, start=1):
                copied += len(line)
                if copied > end:
                    break
                if number not in removed:
                    copy.write(line)
        self._file.close()
        self._file = copy

    def write(self, line: str) -> None:
        """Append a line. A program that is killed later does not lose it."""
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def open_alone(path: Path) -> BinaryIO:
    """Open a file to append to, which nobody else can open in this way until it is closed.

    Args:
        path: The file; it need not exist. On a file system without locks others can open it.

    Raises:
        ConfigurationError: Another run has opened it.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise ConfigurationError(
                f"another run writes its results to {path}; name another file, or wait until it "
                "has ended"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # the file system has no locks
            return file
        file.close()  # another run has just replaced it


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file, which replaces another one at the end of the body, unless that raises.

    It stays open, and nobody else can open it by `open_alone`.
    """
    kept = path.with_name(f"{path.name}.kept")
    kept.unlink(missing_ok=True)  # that of a killed program
    copy = open_alone(kept)
    try:
        yield copy
        copy.flush()
        kept.replace(path)
    except BaseException:
        copy.close()
        kept.unlink(missing_ok=True)
        raise
