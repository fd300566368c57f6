"""Capture of what functions print, even if they run concurrently."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from contextvars import ContextVar
from typing import Any, TextIO

from rhapsody.errors import TaskExecutionError

__all__ = ["StandardDescriptors", "captured", "restore_stdio", "route_stdio"]

_streams: dict[str, Any] = {}
"""The streams that `route_stdio` has set."""

_files: ContextVar[dict[str, TextIO] | None] = ContextVar("files", default=None)


class _Routed(io.TextIOBase):
    """A standard stream that writes to the file of the running task, if its output is captured."""

    def __init__(self, name: str, stream: Any) -> None:
        self._name = name
        self._stream = stream

    def _target(self) -> Any:
        files = _files.get()
        return self._stream if files is None else files[self._name]

    def write(self, text: str) -> int:
        target = self._target()
        return len(text) if target is None else int(target.write(text))

    def flush(self) -> None:
        if (target := self._target()) is not None:
            target.flush()

    def close(self) -> None:
        """Flush only: later tasks print to the same stream."""
        self.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._target().fileno())

    def reconfigure(self, **options: Any) -> None:
        self._target().reconfigure(**options)

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._target().encoding)

    @property
    def buffer(self) -> Any:
        return self._target().buffer


def route_stdio() -> None:
    """Make `sys.stdout` and `sys.stderr` respect `captured`, and flush them after each line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)
        _streams[name] = _Routed(name, stream)
    restore_stdio()


def restore_stdio() -> None:
    """Set `sys.stdout` and `sys.stderr` again, which a task may have replaced."""
    for name, stream in _streams.items():
        setattr(sys, name, stream)


class StandardDescriptors:
    """The files behind the descriptors 1 and 2 at the time when the object is made."""

    def __init__(self) -> None:
        self._files: list[tuple[int, int, tuple[int, ...]]] = []
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # the program has closed it
                copy = os.dup(descriptor)
                self._files.append((descriptor, copy, _identity(copy)))

    def restore(self) -> None:
        """Open the descriptors again that a task has closed or replaced; takes 2 microseconds."""
        for descriptor, copy, identity in self._files:
            if _identity(descriptor) != identity:
                with contextlib.suppress(OSError):  # the task has closed the copy as well
                    os.dup2(copy, descriptor)


def _identity(descriptor: int) -> tuple[int, ...]:
    """Return inode and device of a file, nothing if the descriptor is closed."""
    try:
        return os.fstat(descriptor)[1:3]
    except OSError:
        return ()


class captured:  # noqa: N801 - used like a function, as in contextlib
    """Context in which prints go to `<path>.stdout` and `<path>.stderr`; None captures nothing.

    Not a generator function: an exception that accepts no attributes cannot pass through one.

    Args:
        uid: The uid of the task.
        path: The path of the files without their suffixes.

    Raises:
        TaskExecutionError: The files cannot be written.
    """

    def __init__(self, uid: str, path: str | None) -> None:
        self._uid = uid
        self._path = path

    def __enter__(self) -> None:
        if self._path is None:
            return
        try:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            self._out = self._open("stdout")
            try:
                self._err = self._open("stderr")
            except BaseException:
                self._out.close()
                raise
        except OSError as error:
            reason = f"its output cannot be written to {error.filename!r}: {error.strerror}"
            raise TaskExecutionError(self._uid, reason) from error
        self._token = _files.set({"stdout": self._out, "stderr": self._err})

    def _open(self, name: str) -> TextIO:
        # Names of files may contain what UTF-8 cannot encode.
        return open(f"{self._path}.{name}", "w", encoding="utf-8", errors="backslashreplace")

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            _files.reset(self._token)
            self._out.close()
            self._err.close()
