"""The service loop: one daemon thread with an asyncio loop for all backends of the process.

Backends dispatch, poll and serve here, so a caller whose own loop is blocked slows none of that,
and nothing that a backend does can block the caller.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["IO_THREAD_NAME", "THREAD_NAME", "ServiceLoop", "service_loop"]

THREAD_NAME = "rhapsody-service"
IO_THREAD_NAME = "rhapsody-io"
IO_THREADS = 4
"""Threads for what would block the loop: pickling, JSON of large batches, name look-ups."""

T = TypeVar("T")


class ServiceLoop:
    """An asyncio loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # Named, so that a look at the process's threads says whose they are.
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
        """Whether the caller runs on this loop's thread."""
        return threading.current_thread() is self._thread

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop soon, from any thread; return at once."""
        self.loop.call_soon_threadsafe(func, *args)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the service loop and await it from whichever loop is running.

        Cancelling the caller cancels the coroutine.
        """
        if self.is_current:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def run_blocking(
        self,
        coroutine: Coroutine[Any, Any, T],
        calls: SimpleQueue[Callable[[], None] | None] | None = None,
    ) -> T:
        """Run a coroutine on the service loop and block this thread until it has ended.

        Args:
            coroutine: What to run.
            calls: What to call in this thread meanwhile.

        Raises:
            RuntimeError: Called from the service loop itself, which would wait for itself.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError("a blocking call from the service loop would wait for itself")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            if calls is not None:
                future.add_done_callback(lambda _: calls.put(None))
                for call in iter(calls.get, None):
                    call()
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise


_lock = threading.Lock()
_current: ServiceLoop | None = None
_owner_pid = 0


def service_loop() -> ServiceLoop:
    """Return the process's service loop, starting it on first use.

    A forked child gets a loop of its own: threads do not survive a fork.
    """
    global _current, _owner_pid
    with _lock:
        if _current is None or _owner_pid != os.getpid():
            _current = ServiceLoop()
            _owner_pid = os.getpid()
        return _current
