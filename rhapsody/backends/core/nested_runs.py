"""Runs of tasks inside a task: a thread that waits for tasks of its own pool runs them itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

__all__ = ["Once", "has_helper", "helping_queue", "in_task", "is_in_task", "run_calls_here"]

_pool: ContextVar[object | None] = ContextVar("rhapsody_pool_of_task", default=None)
_helper: ContextVar[tuple[object, SimpleQueue[Any]] | None] = ContextVar(
    "rhapsody_helping_thread", default=None
)


@contextmanager
def in_task(pool: object) -> Iterator[None]:
    """Mark the body as the code of a task that runs in a thread of a pool."""
    token, helper_token = _pool.set(pool), _helper.set(None)
    try:
        yield
    finally:
        _helper.reset(helper_token)
        _pool.reset(token)


@contextmanager
def run_calls_here(calls: SimpleQueue[Any]) -> Iterator[None]:
    """Let the thread of a task also run the tasks that the body submits to the same pool.

    If all threads of a pool wait for tasks of the same pool, only these threads can run them.

    Args:
        calls: Calls that the thread makes while it waits.
    """
    pool = _pool.get()
    token = _helper.set(None if pool is None else (pool, calls))
    try:
        yield
    finally:
        _helper.reset(token)


def is_in_task() -> bool:
    """Return whether the caller is the code of a task that runs in a thread of a pool."""
    return _pool.get() is not None


def has_helper() -> bool:
    """Return whether a thread of a pool waits, or may wait, for the task submitted now."""
    return _helper.get() is not None


def helping_queue(pool: object) -> SimpleQueue[Any] | None:
    """Return the queue of the pool's thread that waits for the task submitted now, if there is one.

    asyncio passes context variables on to the coroutines and callbacks that submit the tasks.

    Args:
        pool: The pool that gets the task. A thread of another pool never runs its tasks: a pool
            may have few threads, or an initializer, for a reason.
    """
    helper = _helper.get()
    return helper[1] if helper is not None and helper[0] is pool else None


class Once:
    """A call that is made once, by the first thread that comes to it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._taken = threading.Lock()

    def __call__(self) -> None:
        """Make the call, unless another thread has."""
        if self._taken.acquire(blocking=False):
            self._call()
