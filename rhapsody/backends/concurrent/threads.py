"""Functions in a pool of threads; async functions run on their own loop in their thread."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.concurrent.coroutines import CoroutineRun
from rhapsody.backends.concurrent.executors import submit, thread_pool
from rhapsody.backends.core.execution import this_thread
from rhapsody.backends.core.nested_runs import Once, Waiting, helping_queue, in_task
from rhapsody.backends.core.work import Work
from rhapsody.gpus import assign_gpus
from rhapsody.processes import end_if_forked

__all__ = ["ThreadCalls"]


class ThreadCalls:
    """Runs functions in threads and reports their starts and ends to the backend.

    Args:
        backend: Receives the reports.
        executor: The caller's executor, which is never shut down. None: an own pool.
        max_workers: Size of an own pool.
    """

    def __init__(
        self, backend: BaseBackend, executor: Executor | None, max_workers: int | None
    ) -> None:
        self._backend = backend
        self._is_own = executor is None
        self.executor = thread_pool(backend.name, max_workers) if executor is None else executor
        self._runs: dict[Work, CoroutineRun] = {}

    def begin(self, work: Work) -> None:
        """Submit a function to the pool, with the context variables of its call; thread-safe.

        A thread that waits for the task inside another one runs it as well, if it comes first.
        """
        # A copy: an earlier attempt may still run in the context of the call.
        context = copy_context() if work.context is None else work.context.copy()
        run: Callable[[], bool] = functools.partial(context.run, self._call, work)
        queue = helping_queue(self.executor)
        if queue is not None:
            run = Once(run)
        try:
            call = submit(self.executor, self._backend.name, run)
        except Exception as error:
            self._backend.report_failed(work, error)
            return
        call.add_done_callback(functools.partial(self._on_call_done, work))
        if queue is not None:
            queue.put(run)

    def interrupt(self, work: Work) -> None:
        """Cancel an async function at its next `await`. A sync function cannot be interrupted."""
        if (run := self._runs.get(work)) is not None:
            run.cancel()

    async def stop(self) -> None:
        """Stop an own pool; functions that still run are left behind."""
        if self._is_own:
            self.executor.shutdown(wait=False, cancel_futures=True)

    def _on_call_done(self, work: Work, call: Future[bool]) -> None:
        # `_call` never raises: these are cancellations and errors of the executor itself.
        if call.cancelled():
            self._backend.report_cancelled(work)
        elif (error := call.exception()) is not None:
            self._backend.report_failed(work, error)

    def _call(self, work: Work, waiting: Waiting = nullcontext) -> bool:
        """Call the function in this thread, and report its end; return False if it has ended.

        Args:
            work: The function.
            waiting: See `in_task`.
        """
        if not self._backend.is_active(work):  # cancelled while it was queued
            return False
        work.location, pid = this_thread(), os.getpid()
        self._backend.report_running(work)
        task = work.task
        try:
            if work.grant is not None and work.grant.request.gpu_parts:
                assign_gpus(work.grant.places[0].gpus)
            with in_task(self.executor, waiting):
                value = task["function"](*(task.get("args") or ()), **(task.get("kwargs") or {}))
                if inspect.isawaitable(value):
                    value = self._await(work, value)
        except BaseException as error:  # the executor must not see any exception
            end_if_forked(pid, error)
            self._backend.report_failed(work, error)
        else:
            end_if_forked(pid)
            self._backend.report_done(work, {"return_value": value})
        return True

    def _await(self, work: Work, awaitable: Any) -> Any:
        self._runs[work] = run = CoroutineRun()
        try:
            return run.run(awaitable, functools.partial(self._backend.is_active, work))
        finally:
            del self._runs[work]
