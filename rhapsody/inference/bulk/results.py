"""Files of results in JSON lines: continued after an interrupt, appended to as results come."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rhapsody.errors import ConfigurationError

__all__ = ["Results", "read_results"]

Result = Mapping[str, Any]


class Results:
    """A file of results that is appended to, one JSON object in a line.

    Args:
        path: The file. It is continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: str) -> None:
        """Append a line. A program that is killed later does not lose it."""
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def read_results(
    path: Path, take: Callable[[Result], bool], noun: str = "a result of a batch"
) -> None:
    """Read the results of an earlier run, and remove the ones that are to be computed again.

    An incomplete last line, as a killed program leaves it, is removed as well. The file changes at
    once or not at all.

    Args:
        path: The file; it need not exist.
        take: Called with each result; returns whether it stays in the file. It raises KeyError or
            TypeError for an object that is no result.
        noun: What a line is, for the error.

    Raises:
        ConfigurationError: A line is no result: the file is another one.
    """
    if not path.exists():
        return
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
        _copy_without(path, frozenset(removed), end)
    else:
        os.truncate(path, end)


def _copy_without(path: Path, removed: frozenset[int], end: int) -> None:
    kept = path.with_name(f"{path.name}.kept")
    with path.open("rb") as file, kept.open("wb") as copy:
        copied = 0
        for number, line in enumerate(file, start=1):
            copied += len(line)
            if copied > end:
                break
            if number not in removed:
                copy.write(line)
    kept.replace(path)
