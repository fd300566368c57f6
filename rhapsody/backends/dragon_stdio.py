"""What a function prints, in files of its own task: each of several at once has its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import sys
import threading
from contextvars import ContextVar
from typing import Any, TextIO

__all__ = ["captured", "relay_stdio", "route_stdio"]

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
    """Make `sys.stdout` and `sys.stderr` follow `captured`, and let every line out at once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, _Routed(name, stream))


def relay_stdio() -> None:
    """Keep Dragon's own pipes from children: it takes a worker for alive while one is open."""
    for descriptor in (1, 2):
        ours, (source, sink) = os.dup(descriptor), os.pipe()
        os.dup2(sink, descriptor)
        os.close(sink)
        relay = threading.Thread(target=_relay, args=(source, ours), daemon=True)
        relay.start()
        os.register_at_fork(after_in_child=functools.partial(_close, source, ours))
        atexit.register(_drain, descriptor, ours, relay)


def _relay(source: int, target: int) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(target, data) :]


def _drain(descriptor: int, ours: int, relay: threading.Thread) -> None:
    with contextlib.suppress(Exception):
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
        os.dup2(ours, descriptor)
        relay.join(0.2)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class captured:
    """Write what is printed to `<path>.stdout` and `<path>.stderr`; nothing to do for None.

    Not a generator, through which an exception that takes no attributes would not pass.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is None:
            return
        os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
        self._out = open(f"{self._path}.stdout", "w", encoding="utf-8")
        try:
            self._err = open(f"{self._path}.stderr", "w", encoding="utf-8")
        except BaseException:
            self._out.close()
            raise
        self._token = _files.set({"stdout": self._out, "stderr": self._err})

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            _files.reset(self._token)
            self._out.close()
            self._err.close()
