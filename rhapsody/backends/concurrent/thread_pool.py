"""The backend's own threads, which take functions from the queue of this machine."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.concurrent.executors import submit, thread_pool
from rhapsody.backends.concurrent.local_queue import LocalQueue
from rhapsody.backends.concurrent.threads import ThreadCalls
from rhapsody.backends.core.accounts import Request
from rhapsody.backends.core.nested_runs import Waiting, helping_queue, waiting_of_task
from rhapsody.backends.core.work import Work
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.errors import BackendError, ResourceError

__all__ = ["ThreadPool", "default_threads"]


def default_threads() -> int:
    """Return the number of threads that `ThreadPoolExecutor` has by default."""
    return min(32, (os.cpu_count() or 1) + 4)


@dataclass(slots=True)
class _Lender:
    """A function that lends its resources while it waits for other tasks."""

    queue: LocalQueue
    work: Work

    def __call__(self) -> AbstractContextManager[None]:
        return self.queue.lending(self.work)

    @property
    def has_gpus(self) -> bool:
        return self.work.grant is not None and self.work.grant.request.gpu_parts > 0


class ThreadPool(ThreadCalls):
    """Threads that take functions from a queue until it is empty.

    A call of the executor for each function would cost more than a short function itself, and
    would wake a thread each time. So one call of the executor serves many functions.

    Args:
        backend: Receives the reports.
        size: Maximum number of threads.
        queue: Holds the functions.
    """

    def __init__(self, backend: BaseBackend, size: int, queue: LocalQueue) -> None:
        super().__init__(backend, thread_pool(backend.name, size), None)
        self._is_own = True
        self._size = size
        self._servers = 0
        self._lock = threading.Lock()
        self._queue = queue

    def add_plain(self, works: Sequence[Work]) -> None:
        """Queue functions that ask for nothing but one CPU, and wake a thread; thread-safe."""
        self._keep_context(works)
        self._queue.add_plain(works)
        self._let_caller_help(works)
        self.wake()

    def add(self, work: Work, request: Request) -> None:
        """Queue a function or an executable; thread-safe.

        If a task in one of the threads waits for it, that thread may run a function, and an
        executable may run with the CPUs of the task: they would otherwise wait for each other.

        Raises:
            ResourceError: The machine can never meet the request, or a task in a thread would wait
                for a task that may need what the first one has.
        """
        inside = helping_queue(self.executor) is not None
        if inside:
            self._refuse_what_waits_for_ever(work, request)
        if work.kind == EXECUTABLE:
            self._queue.add(work, request, inside)
            return
        self._keep_context([work])
        self._queue.add(work, request)
        self._let_caller_help([work])

    def _refuse_what_waits_for_ever(self, work: Work, request: Request) -> None:
        way_out = "submit it outside of the task"
        waiting = waiting_of_task()
        may_need_gpu = request.gpu_parts > 0
        if work.kind == EXECUTABLE:
            may_need_gpu = may_need_gpu and isinstance(waiting, _Lender) and waiting.has_gpus
        else:
            way_out += ", or use a backend with processes"
        if may_need_gpu or request.exclusive:
            raise ResourceError(
                work.uid,
                "gpu" if may_need_gpu else "node",
                "a task in a thread of the same backend waits for it, and the two might wait for "
                f"each other; {way_out}",
            )

    def _keep_context(self, works: Sequence[Work]) -> None:
        context = copy_context()
        for work in works:
            if work.context is None:
                work.context = context

    def _let_caller_help(self, works: Sequence[Work]) -> None:
        """Let a thread that waits for the functions inside a task run them, if it comes first."""
        calls = helping_queue(self.executor)
        if calls is not None:
            for work in works:
                calls.put(functools.partial(self._help, work))

    def _help(self, work: Work) -> bool:
        if not self._queue.claim(work):
            return False
        try:
            return self._call_in_context(work, waiting_of_task())
        finally:
            self._queue.drop_claim(work)

    def wake(self) -> None:
        """Let one more thread serve the queue, unless all do; thread-safe."""
        with self._lock:
            if self._servers >= self._size:
                return
            self._servers += 1
        try:
            submit(self.executor, self._backend.name, self._serve)
        except BackendError:  # shut down: the tasks are cancelled
            with self._lock:
                self._servers -= 1

    def _serve(self) -> None:
        work: Work | None = None
        while True:
            with self._lock:
                work = self._queue.take(work)
                if work is None:
                    self._servers -= 1
                    return
            if len(self._queue):
                self.wake()  # this function may take long
            self._call_in_context(work, _Lender(self._queue, work))

    def _call_in_context(self, work: Work, waiting: Waiting) -> bool:
        # A copy: other functions of the same submission share the context.
        assert work.context is not None
        return work.context.copy().run(self._call, work, waiting)
