"""What happens at the exit of a program that did not shut its backends down."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING

from rhapsody.backends.service import service_loop

if TYPE_CHECKING:
    from rhapsody.backends.lifecycle import Lifecycle

__all__ = ["EXIT_SECONDS", "end_at_exit"]

EXIT_SECONDS = 5.0
"""How long a shutdown may take then."""

_backends: weakref.WeakSet[Lifecycle] = weakref.WeakSet()


def end_at_exit(backend: Lifecycle) -> None:
    """End a backend at exit, if it still exists and runs then."""
    _backends.add(backend)
    _register()


@functools.cache
def _register() -> None:
    # Executors join their workers before `atexit` runs, for ever where a task never ends. What
    # `threading` offers for its own needs comes earlier, the last to register first.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(functools.partial(_end_all, os.getpid()))


def _end_all(owner_pid: int) -> None:
    """End what nobody shut down: in good order where that is quick, else at once."""
    if os.getpid() != owner_pid:
        return  # a forked child exits: nothing of this is its own
    backends = [
        backend for backend in list(_backends) if backend.state() not in ("IDLE", "STOPPED")
    ]
    loop = service_loop().loop
    ends = [asyncio.run_coroutine_threadsafe(b.shut_down_once(), loop) for b in backends]
    try:
        concurrent.futures.wait(ends, timeout=EXIT_SECONDS)
    finally:  # a second Ctrl-C interrupts the waiting
        for backend in backends:
            backend.abandon()
