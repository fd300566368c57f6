"""Functions in an executor of the caller: a pool of processes of any library."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.concurrent import interruptible_calls
from rhapsody.backends.concurrent.executors import cancel, result_of, submit
from rhapsody.backends.core.execution import Location, this_host
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers import pickling
from rhapsody.errors import WorkerDied

__all__ = ["ExecutorCalls"]


class ExecutorCalls:
    """Runs functions in an executor, on the service loop, and reports their starts to the backend.

    Args:
        backend: Receives the reports.
        executor: The executor, which is never shut down.
    """

    def __init__(self, backend: BaseBackend, executor: Executor) -> None:
        self._backend = backend
        self._executor = executor
        self._monitor = interruptible_calls.CallMonitor()

    async def run(self, work: Work) -> Any:
        """Run a function and return its value, or raise its exception.

        Raises:
            TaskExecutionError: The function or its result cannot be pickled.
            WorkerDied: A process of the executor died before the function ended.
        """
        task = work.task
        data = await asyncio.to_thread(
            pickling.dump_call,
            work.uid,
            task["function"],
            task.get("args") or (),
            task.get("kwargs") or {},
        )
        call_id = self._monitor.register(functools.partial(self._on_started, work))
        try:
            outcome = await self._call(data, call_id)
        except BrokenExecutor as error:
            raise WorkerDied(
                work.uid, "a worker process of the pool died while the pool had this task"
            ) from error
        finally:
            self._monitor.forget(call_id)
        return await asyncio.to_thread(pickling.load_outcome, work.uid, outcome)

    def _on_started(self, work: Work, pid: int) -> None:
        work.location = Location(this_host(), pid, f"process {pid}")
        self._backend.report_running(work)

    def stop(self) -> None:
        """Release what all calls share."""
        self._monitor.close()

    def kill_children(self) -> None:
        """Remove the files of the calls; the executor is the caller's."""
        self._monitor.remove_directory()

    async def _call(self, data: bytes, call_id: str) -> bytes:
        future = submit(
            self._executor,
            self._backend.name,
            interruptible_calls.run_call,
            data,
            call_id,
            self._monitor.directory,
        )
        try:
            return await result_of(future)
        except asyncio.CancelledError:
            self._monitor.interrupt(call_id, future)
            cancel(self._executor, future)
            raise
