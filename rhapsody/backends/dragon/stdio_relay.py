"""Relay of a process's standard output and error to the pipes that Dragon gave it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading

__all__ = ["relay_stdio"]


def relay_stdio() -> None:
    """Give this process and its children their own pipes, relayed to Dragon's by a thread.

    Dragon considers a process alive as long as any process holds its standard output open.
    """
    for descriptor in (1, 2):
        dragons_pipe, (source, sink) = os.dup(descriptor), os.pipe()
        os.dup2(sink, descriptor)
        os.close(sink)
        relay = threading.Thread(target=_copy, args=(source, dragons_pipe), daemon=True)
        relay.start()
        os.register_at_fork(after_in_child=functools.partial(_close, source, dragons_pipe))
        atexit.register(_drain, descriptor, dragons_pipe, relay)


def _copy(source: int, target: int) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(target, data) :]


def _drain(descriptor: int, dragons_pipe: int, relay: threading.Thread) -> None:
    with contextlib.suppress(Exception):
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
        os.dup2(dragons_pipe, descriptor)
        relay.join(0.2)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
