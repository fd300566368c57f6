"""A mend for a lost wake-up in Dragon's requests to its global services."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from typing import Any

__all__ = ["ReceiveLock", "mend_requests"]


class ReceiveLock:
    """The lock of the thread that receives answers, which wakes another thread once it is free.

    In Dragon 0.15, the thread that received its own answer wakes another one before it releases the
    lock. If that thread runs at once, it finds the lock taken and waits again. Nobody receives its
    answer then until the program makes another request: for example, it does not learn that a
    process ended. A busy machine makes this likely.

    Args:
        waiting: The events of all requests without an answer, by tag (`_WAKEUPS` of
            `dragon.globalservices.api_setup`).
    """

    def __init__(self, waiting: MutableMapping[Any, threading.Event]) -> None:
        self._lock = threading.Lock()
        self._waiting = waiting

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; return whether this succeeded."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Release the lock, and wake a thread that waits for an answer."""
        self._lock.release()
        for event in tuple(self._waiting.values())[-1:]:
            event.set()


def mend_requests() -> None:
    """Replace the lock in Dragon, unless it is in use now, or this Dragon has none of this name.

    Call it before the program's first request. A thread that holds the former lock would release
    the new one.
    """
    try:
        from dragon.globalservices import api_setup
    except ImportError:
        return
    lock, waiting = (getattr(api_setup, name, None) for name in ("_GS_RECV_LOCK", "_WAKEUPS"))
    if lock is None or waiting is None or isinstance(lock, ReceiveLock):
        return
    # The former lock is never released: a thread that has just looked it up cannot take it.
    if lock.acquire(blocking=False):
        api_setup._GS_RECV_LOCK = ReceiveLock(waiting)
