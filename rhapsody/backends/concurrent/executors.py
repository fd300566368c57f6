"""Executors: the calls of a backend to them, and its own pool of threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.thread import ThreadPoolExecutor
from typing import Any, TypeVar

from rhapsody.errors import BackendError

__all__ = ["cancel", "result_of", "submit", "thread_pool"]

T = TypeVar("T")


def thread_pool(backend_name: str, max_workers: int | None) -> Executor:
    """Return a pool of threads, named after the backend."""
    return ThreadPoolExecutor(max_workers, thread_name_prefix=f"rhapsody-{backend_name}")


def submit(
    executor: Executor, backend_name: str, function: Callable[..., T], *args: Any
) -> Future[T]:
    """Submit a call to an executor.

    Raises:
        BrokenExecutor: The executor's processes died.
        BackendError: The executor does not accept calls, for example after its shutdown.
    """
    try:
        return executor.submit(function, *args)
    except BrokenExecutor:
        raise
    except Exception as error:
        raise BackendError(backend_name, f"its executor does not take tasks: {error}") from error


async def result_of(future: Future[T]) -> T:
    """Wait for an executor's future and return its result; cancelling the call leaves it alone."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    await done.wait()
    if future.cancelled():
        raise asyncio.CancelledError
    return future.result()


def cancel(executor: Executor, future: Future[Any]) -> None:
    """Cancel an executor's future, if the executor can do that."""
    # In Python 3.10 and 3.11, a cancelled future keeps the other futures of a pool whose process
    # dies pending for ever: `terminate_broken` raises InvalidStateError.
    if isinstance(executor, ProcessPoolExecutor):
        return
    with contextlib.suppress(NotImplementedError):  # Parsl's futures
        future.cancel()
