"""The service loop: one asyncio loop in a daemon thread, for all backends of the process.

Backends dispatch, poll and serve on this loop. A caller that blocks its own loop does not delay
them, and they do not block the caller's loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rhapsody.backends.core.nested_runs import WaitQueue
from rhapsody.errors import RhapsodyError

__all__ = [
    "IO_THREAD_NAME",
    "THREAD_NAME",
    "ServiceLoop",
    "in_thread",
    "note_end",
    "refuse_at_end",
    "service_loop",
]

THREAD_NAME = "rhapsody-service"
IO_THREAD_NAME = "rhapsody-io"
IO_THREADS = 4
"""Threads for calls that would block the loop: pickling, JSON of large batches, name lookups."""

T = TypeVar("T")


class ServiceLoop:
    """An asyncio loop in its own daemon thread."""

    def __init__(self) -> None:
        # Not `new_event_loop`: the loop of the program's policy, such as uvloop, may differ.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        # The name identifies these threads in a list of the process's threads.
        self.loop.set_default_executor(
            ThreadPoolExecutor(IO_THREADS, thread_name_prefix=IO_THREAD_NAME)
        )
        self._thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def is_current(self) -> bool:
        """Whether the caller is in this loop's thread."""
        return threading.current_thread() is self._thread

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Schedule a call on the loop and return at once; thread-safe."""
        self.loop.call_soon_threadsafe(func, *args)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the service loop and await it on the running loop.

        Cancelling the caller cancels the coroutine.
        """
        if self.is_current:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def run_blocking(
        self,
        coroutine: Coroutine[Any, Any, T],
        calls: WaitQueue | None = None,
    ) -> T:
        """Run a coroutine on the service loop and block this thread until it ends.

        Args:
            coroutine: The coroutine to run.
            calls: Functions to call in this thread until then: its items.

        Raises:
            RuntimeError: Called on the service loop itself, which would deadlock.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError("a blocking call on the service loop would deadlock")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            if calls is not None:
                future.add_done_callback(lambda _: calls.put_nowait(None))
                for call in iter(calls.get, None):
                    call()
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C nothing waits for the result
            raise


_is_ending = False


def note_end() -> None:
    """Note that the interpreter has begun to end: backends are shut down and must not start."""
    global _is_ending
    _is_ending = True


async def in_thread(function: Callable[..., object], *args: Any) -> None:
    """Call a function that blocks in a thread; at the end of the interpreter here, if need be.

    Python 3.12 and later start no thread then, and there may be no idle one.
    """
    try:
        await asyncio.to_thread(function, *args)
    except RuntimeError:
        if not _is_ending:
            raise
        function(*args)


def refuse_at_end() -> None:
    """Refuse to start anything after the end of the main thread.

    Raises:
        RhapsodyError: The main thread has ended. Pools of threads refuse work from then on, and
            Python 3.12 and later start no thread.
    """
    if _is_ending or not threading.main_thread().is_alive():
        raise RhapsodyError(
            "the main thread of this program has ended, and Python starts no threads after that; "
            "let the main thread wait for this one, for example by its method join()"
        )


_lock = threading.Lock()
_current: ServiceLoop | None = None
_owner_pid = 0


def service_loop() -> ServiceLoop:
    """Return the service loop of this process; start it on first use.

    A forked child starts its own loop, since threads do not survive a fork.

    Raises:
        RhapsodyError: It does not run, and the main thread has ended.
    """
    global _current, _owner_pid
    with _lock:
        if _current is None or _owner_pid != os.getpid():
            refuse_at_end()
            _current = ServiceLoop()
            _owner_pid = os.getpid()
        return _current
