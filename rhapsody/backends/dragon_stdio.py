"""What a function prints, in files of its own task: each of several at once has its own."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

__all__ = ["captured", "route_stdio"]

_files: ContextVar[dict[str, TextIO] | None] = ContextVar("files", default=None)


class _Routed(io.TextIOBase):
    """A standard stream that writes where the running task's output goes."""

    def __init__(self, name: str, stream: Any) -> None:
        self._name = name
        self._stream = stream

    def _target(self) -> Any:
        files = _files.get()
        return self._stream if files is None else files[self._name]

    def write(self, text: str) -> int:
        return int(self._target().write(text))

    def flush(self) -> None:
        self._target().flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._target().fileno())

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._target().encoding)

    @property
    def buffer(self) -> Any:
        return self._target().buffer


def route_stdio() -> None:
    """Make `sys.stdout` and `sys.stderr` follow `captured`, and let every line out at once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, _Routed(name, stream))


@contextlib.contextmanager
def captured(path: str | None) -> Iterator[None]:
    """Write what is printed to `<path>.stdout` and `<path>.stderr`; nothing to do for None."""
    if path is None:
        yield
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with (
        open(f"{path}.stdout", "w", encoding="utf-8") as out,
        open(f"{path}.stderr", "w", encoding="utf-8") as err,
    ):
        token = _files.set({"stdout": out, "stderr": err})
        try:
            yield
        finally:
            _files.reset(token)
