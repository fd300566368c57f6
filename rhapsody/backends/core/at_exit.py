"""Shutdown at interpreter exit of the backends that the program did not shut down."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import threading
import weakref
from typing import Protocol

from rhapsody.backends.core.service_loop import note_end, service_loop

__all__ = ["EXIT_SECONDS", "shut_down_at_exit"]

EXIT_SECONDS = 5.0
"""Longest time for the shutdown of all backends; then their child processes are killed."""


class StartedBackend(Protocol):
    """The methods of a backend that are called at interpreter exit."""

    def state(self) -> str:
        """Return the backend's state; IDLE and STOPPED need no shutdown."""

    async def shutdown_on_service_loop(self) -> None:
        """Cancel all tasks and release all resources."""

    def kill_children(self) -> None:
        """Kill child processes."""


_backends: weakref.WeakSet[StartedBackend] = weakref.WeakSet()


def shut_down_at_exit(backend: StartedBackend) -> None:
    """Shut a backend down at interpreter exit, if it still exists and runs then."""
    _backends.add(backend)
    _register()


@functools.cache
def _register() -> None:
    # Executors join their workers before `atexit` functions run, and a task that never ends would
    # block that. `threading` calls the functions registered here earlier, the last one first.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(functools.partial(_shut_down_all, os.getpid()))


def _shut_down_all(owner_pid: int) -> None:
    """Shut down all backends that still run; kill their children if that takes too long."""
    if os.getpid() != owner_pid:
        return  # a forked child exits: the backends are its parent's
    note_end()
    backends = [
        backend for backend in list(_backends) if backend.state() not in ("IDLE", "STOPPED")
    ]
    loop = service_loop().loop
    shutdowns = [
        asyncio.run_coroutine_threadsafe(backend.shutdown_on_service_loop(), loop)
        for backend in backends
    ]
    try:
        concurrent.futures.wait(shutdowns, timeout=EXIT_SECONDS)
    finally:  # also if a second Ctrl-C interrupts the wait
        for backend in backends:
            backend.kill_children()
