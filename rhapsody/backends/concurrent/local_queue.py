"""The tasks of this machine that wait for their resources."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rhapsody.backends.concurrent.lent_resources import LentResources
from rhapsody.backends.core.accounts import PLAIN, Account, Capacity, Request
from rhapsody.backends.core.fair_queue import FairQueue
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import Work
from rhapsody.backends.protocol import EXECUTABLE, TaskStates
from rhapsody.errors import ResourceError
from rhapsody.gpus import GPUS

__all__ = ["LocalQueue", "request_of"]


class LocalQueue:
    """Functions and executables that wait for the resources of this machine. Thread-safe.

    Threads take the functions, if there are any; other tasks are started by a call. A task has its
    resources in `Work.grant` until they are released.

    Args:
        capacity: What this machine offers.
        is_active: Returns False if a task has been cancelled.
        start: Called, in any thread, for a task that has its resources and needs no thread.
        wake_thread: Called, in any thread, if a function for the threads has its resources. None:
            there are no threads.
    """

    def __init__(
        self,
        capacity: Capacity,
        is_active: Callable[[Work], bool],
        start: Callable[[Work], None],
        wake_thread: Callable[[], None] | None,
    ) -> None:
        self._is_active = is_active
        self._start = start
        self._wake_thread = wake_thread
        self._lock = threading.Lock()
        self._account = Account([capacity])
        self._waiting: FairQueue[Work] = FairQueue(self._account, self._is_gone)
        self._lent = LentResources(self._account, self._is_gone)
        self._ready: deque[Work] = deque()
        self._claimed: set[Work] = set()
        GPUS.add_listener(self._on_gpus_released)

    def __len__(self) -> int:
        """Number of tasks that wait; cancelled ones may be among them."""
        return len(self._waiting) + len(self._ready)

    def _on_gpus_released(self) -> None:
        # Not at once: a release by this queue itself holds its lock.
        service_loop().call(self.advance)

    def _is_gone(self, work: Work) -> bool:
        return (
            not self._is_active(work)
            or work in self._claimed
            # An executable that has begun with resources that are lent.
            or work.grant is not None
            or work.state != TaskStates.PENDING
        )

    def add_plain(self, works: Collection[Work]) -> None:
        """Add functions of priority 0 that ask for nothing but one CPU. Wakes no thread."""
        with self._lock:
            self._waiting.add_plain(works)

    def add(self, work: Work, request: Request, inside: bool = False) -> None:
        """Add a task.

        Args:
            work: The task.
            request: What it asks for.
            inside: Whether it is an executable that a function in a thread may wait for.

        Raises:
            ResourceError: The machine can never meet the request.
        """
        shortage = self._account.shortage(request)
        if shortage is not None:
            raise ResourceError(work.uid, self._account.lacks(request), shortage)
        with self._lock:
            self._waiting.add(work, request, work.priority)
            if inside:
                self._lent.add(work, request)
        self.advance()

    def take(self, ended: Work | None) -> Work | None:
        """Return the next function that can start; start the executables that precede it.

        Args:
            ended: A function whose resources are released first.
        """
        started: list[Work] = []
        with self._lock:
            self._release(ended)
            work = self._ready.popleft() if self._ready else self._next()
            while work is not None and not self._needs_thread(work):
                started.append(work)
                work = self._next()
        for one in started:
            self._start(one)
        return work

    def _needs_thread(self, work: Work) -> bool:
        return self._wake_thread is not None and work.kind != EXECUTABLE

    def release(self, work: Work) -> None:
        """Release the resources of a task that has ended, and start what they suffice for."""
        with self._lock:
            self._release(work)
        self.advance()

    def advance(self) -> None:
        """Start what has its resources now, for example after a cancellation."""
        started: list[Work] = []
        with self._lock:
            while (work := self._next()) is not None:
                (self._ready if self._needs_thread(work) else started).append(work)
            has_ready = bool(self._ready)
        for one in started:
            self._start(one)
        if has_ready and self._wake_thread is not None:
            self._wake_thread()

    @contextmanager
    def lending(self, function: Work) -> Iterator[None]:
        """Lend the resources of a function to executables while the body waits for something."""
        with self._lock:
            self._lent.lend(function)
            is_wanted = bool(self._lent)
        if is_wanted:
            self.advance()
        try:
            yield
        finally:
            with self._lock:
                self._lent.take_back(function)

    def claim(self, work: Work) -> bool:
        """Take a function without its resources; return False if it has been taken already."""
        with self._lock:
            if work.grant is not None or work in self._claimed:
                return False
            self._claimed.add(work)
            return True

    def drop_claim(self, work: Work) -> None:
        """Forget a claimed function that has ended."""
        self._claimed.discard(work)

    def _next(self) -> Work | None:
        entry = self._waiting.take()
        if not self._lent:
            pass
        elif entry is not None:
            self._lent.drop(entry[0], entry[1].request)
        else:
            entry = self._lent.take()
        if entry is None:
            return None
        work, grant = entry
        work.grant = grant
        return work

    def _release(self, work: Work | None) -> None:
        if work is not None and work.grant is not None:
            self._account.release(work.grant)
            self._lent.release(work)
            work.grant = None


def request_of(work: Work) -> Request:
    """Return the request of a task; an executable takes CPUs only if it asks for them."""
    resources, is_executable = work.resources, work.kind == EXECUTABLE
    if resources is None:
        return EXECUTABLE_REQUEST if is_executable else PLAIN
    return Request.from_resources(resources, 0 if is_executable else None, int(is_executable))


EXECUTABLE_REQUEST = Request(cpus=0, children=1)
"""The request of an executable that asks for nothing."""
