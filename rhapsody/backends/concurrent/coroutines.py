"""Async functions in threads: each runs to its end on an event loop of its thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["CoroutineRun"]

_local = threading.local()

USES_OF_ONE_RUN = 2
"""Callbacks that asyncio schedules to run a coroutine that never waits: its step, and its end."""


class CoroutineRun:
    """One run of an async function, in a thread; other threads can cancel it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, awaitable: Awaitable[Any], is_active: Callable[[], bool]) -> Any:
        """Await an object on an event loop of this thread, as `asyncio.run` does.

        A loop takes a few tenths of a millisecond to make. So functions that leave nothing behind
        on their loop share it with later ones of the thread.

        Args:
            awaitable: What the function returned.
            is_active: Returns False if the task has been cancelled already.
        """
        if type(asyncio.get_event_loop_policy()) is not asyncio.DefaultEventLoopPolicy:
            return asyncio.run(self._await(awaitable, is_active))
        kept = getattr(_local, "kept", None)
        if kept is None:
            kept = _local.kept = _KeptLoop()
        return kept.run(self._await(awaitable, is_active))

    async def _await(self, awaitable: Awaitable[Any], is_active: Callable[[], bool]) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._task is not None and not is_active():
            self._task.cancel()
        return await awaitable

    def cancel(self) -> None:
        """Cancel the function at its next `await`; thread-safe."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._task.cancel)


class _ThreadLoop(asyncio.SelectorEventLoop):
    """An event loop that notes whether a function may have left something behind on it.

    Attributes:
        uses: How often a callback was scheduled. See `USES_OF_ONE_RUN`.
        is_used: Whether a method was called that may leave something behind.
    """

    uses = 0
    is_used = False

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        self.uses += 1
        return super().call_soon(*args, **kwargs)


def _noting(name: str) -> Any:
    """Return a method of the loop that also notes its use."""
    method = getattr(asyncio.SelectorEventLoop, name)

    @functools.wraps(method)
    def noted(self: _ThreadLoop, *args: Any, **kwargs: Any) -> Any:
        self.is_used = True
        return method(self, *args, **kwargs)

    return noted


for _name in (
    "add_reader",
    "add_writer",
    "call_at",
    "call_soon_threadsafe",
    "run_in_executor",
    "set_default_executor",
    "set_exception_handler",
    "set_task_factory",
):
    # Signatures differ between versions of Python, and these methods only pass arguments on.
    setattr(_ThreadLoop, _name, _noting(_name))


class _KeptLoop:
    """The loop of one thread, until a function may have left something behind on it."""

    def __init__(self) -> None:
        self._loop: _ThreadLoop | None = None

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end."""
        loop = self._loop
        if loop is None:
            loop = self._loop = _ThreadLoop()
        loop.uses = 0
        try:
            return loop.run_until_complete(_watching_generators(loop, coroutine))
        finally:
            if loop.is_used or loop.uses != USES_OF_ONE_RUN:
                self._loop = None
                _end(loop)

    def __del__(self) -> None:
        """Close the loop at the end of its thread."""
        if self._loop is not None:
            self._loop.close()


async def _watching_generators(loop: _ThreadLoop, coroutine: Any) -> Any:
    """Await a coroutine; note the start of an async generator, which may be left open."""
    hooks = sys.get_asyncgen_hooks()

    def on_first(generator: Any) -> None:
        loop.is_used = True
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(on_first, hooks.finalizer)
    return await coroutine


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left on a loop and close it, as `asyncio.run` does."""
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:
                loop.call_exception_handler(
                    {
                        "message": "unhandled exception during the end of an async function",
                        "exception": task.exception(),
                        "task": task,
                    }
                )
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
