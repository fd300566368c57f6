"""Runs of tasks inside a task: a thread that waits for tasks of its own pool runs them itself."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

__all__ = [
    "REPORT_SECONDS",
    "Attempts",
    "CallSink",
    "Once",
    "WaitQueue",
    "Waiting",
    "has_helper",
    "helping_queue",
    "in_task",
    "is_in_task",
    "run_calls_here",
    "waiting_of_task",
]

HEAD_START = 0.1
"""Seconds that other threads have to begin a task, before a wait with a timeout runs it here."""
REPORT_SECONDS = 1.0
"""Longest time after a call until the end of its task is known; then it may wait for a retry."""
SIGNAL_SECONDS = 1.0
"""Longest wait of the main thread in one step. Python handles a signal that comes just before a
wait only after it."""

Call = Callable[[], bool]
"""Runs a task in this thread, unless another thread has begun it; returns whether it did."""


Waiting = Callable[[], AbstractContextManager[Any]]
"""Returns a context for the time in which a task waits for another one, and does not compute."""


class CallSink(Protocol):
    """The interface of queues that take calls."""

    def put(self, call: Call, /) -> None:
        """Take a call; thread-safe."""


_pool: ContextVar[object | None] = ContextVar("rhapsody_pool_of_task", default=None)
_waiting: ContextVar[Waiting] = ContextVar("rhapsody_waiting_task", default=nullcontext)
_helper: ContextVar[tuple[object, CallSink] | None] = ContextVar(
    "rhapsody_helping_thread", default=None
)


@contextmanager
def in_task(pool: object, waiting: Waiting = nullcontext) -> Iterator[None]:
    """Mark the body as the code of a task that runs in a thread of a pool.

    Args:
        pool: The pool.
        waiting: Its contexts are entered while the thread waits for tasks.
    """
    token, waiting_token, helper_token = _pool.set(pool), _waiting.set(waiting), _helper.set(None)
    try:
        yield
    finally:
        _waiting.reset(waiting_token)
        _helper.reset(helper_token)
        _pool.reset(token)


@contextmanager
def run_calls_here(calls: CallSink) -> Iterator[None]:
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


def waiting_of_task() -> Waiting:
    """Return the contexts in which the task that runs in this thread waits."""
    return _waiting.get()


def is_in_task() -> bool:
    """Return whether the caller is the code of a task that runs in a thread of a pool."""
    return _pool.get() is not None


def has_helper() -> bool:
    """Return whether a thread of a pool waits, or may wait, for the task submitted now."""
    return _helper.get() is not None


def helping_queue(pool: object) -> CallSink | None:
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

    def __init__(self, call: Call) -> None:
        self._call = call
        self._taken = threading.Lock()

    def __call__(self) -> bool:
        """Make the call, unless another thread has; return whether it ran the task."""
        return self._taken.acquire(blocking=False) and self._call()


class Attempts:
    """The attempts of one task, as calls for the threads of its pool that wait for it."""

    def __init__(self) -> None:
        # The task is called here only if it is given to the pool of the thread that submits it.
        self._pool = _pool.get()
        self._lock = threading.Lock()
        self._latest: Call | None = None
        self._queues: list[WaitQueue] = []

    def put(self, call: Call) -> None:
        """Offer an attempt to the waiting threads, and to those that wait later; thread-safe."""
        with self._lock:
            self._latest = call
            queues = list(self._queues)
        for queue in queues:
            queue.offer(self, call)

    def offer_to(self, queue: WaitQueue) -> None:
        """Offer the attempts to this thread, which waits for the task from now on.

        A thread of another pool, or of none, never runs the task.
        """
        if self._pool is not _pool.get():
            return
        with self._lock:
            self._queues.append(queue)
            call = self._latest
        if call is not None:
            queue.offer(self, call)

    def withdraw_from(self, queue: WaitQueue) -> None:
        """Offer no more attempts to a thread that does not wait any more."""
        with self._lock:
            if queue in self._queues:
                self._queues.remove(queue)


class WaitQueue:
    """A queue whose only reader makes calls in its own thread while there is nothing to read.

    Args:
        timeout: Seconds from now in which the reader begins calls, after other threads had time to
            make them. A call that has begun is not interrupted. None: no limit.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._arrivals: SimpleQueue[tuple[Any, Attempts | None, Call | None]] = SimpleQueue()
        self._calls: deque[tuple[Attempts | None, Call]] = deque()
        # The task that the last call ran. Its end arrives here, or its next attempt.
        self._awaited: Attempts | None = None
        now = monotonic()
        self._begin = 0.0 if timeout is None else now + HEAD_START
        self._deadline = math.inf if timeout is None else now + timeout
        self._last_end = -math.inf

    @property
    def is_late(self) -> bool:
        """Whether the end of a task may become known after the timeout, since it ran here."""
        return self._last_end + REPORT_SECONDS > self._deadline

    def put_nowait(self, item: Any) -> None:
        """Add an item; thread-safe."""
        self._arrivals.put((item, None, None))

    def put(self, call: Call) -> None:
        """Add a call whose end is no item; thread-safe."""
        self._arrivals.put((None, None, call))

    def offer(self, attempts: Attempts, call: Call) -> None:
        """Add an attempt of a task whose end is an item; thread-safe."""
        self._arrivals.put((None, attempts, call))

    def get(self) -> Any:
        """Remove and return the next item, however late it comes."""
        return self._get(math.inf)

    def get_in_time(self) -> Any:
        """Remove and return the next item.

        Raises:
            Empty: No item came before the timeout, nor for a call that ended after it.
        """
        return self._get(self._deadline)

    def _get(self, deadline: float) -> Any:
        step = SIGNAL_SECONDS if threading.current_thread() is threading.main_thread() else math.inf
        while True:
            now = monotonic()
            wakes = min(deadline, now + step)
            if self._calls and self._arrivals.empty() and now < self._deadline:
                # A task that has failed may be in a long pause before its next attempt.
                reported = 0.0 if self._awaited is None else self._last_end + REPORT_SECONDS
                begin = max(self._begin, reported)
                if begin <= now:
                    self._call_next()
                    deadline = max(deadline, self._last_end + REPORT_SECONDS)
                    continue
                wakes = min(wakes, begin)
            waiting = nullcontext if not self._arrivals.empty() else waiting_of_task()
            try:
                left = None if wakes == math.inf else max(0.0, wakes - now)
                with waiting():
                    item, source, offered = self._arrivals.get(timeout=left)
            except Empty:
                if monotonic() >= deadline:
                    raise
                continue
            if offered is None:
                self._awaited = None
                return item
            if source is self._awaited:
                self._awaited = None
            self._calls.append((source, offered))

    def _call_next(self) -> None:
        attempts, call = self._calls.popleft()
        if call():
            self._awaited = attempts
            self._last_end = monotonic()
