"""Tasks on this machine: functions in an executor's threads or processes, executables beside."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.thread import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from rhapsody.api.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.backends import process_calls
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.executables import OPTIONS, Executable
from rhapsody.backends.guard import GuardedGroups
from rhapsody.backends.protocol import EXECUTABLE, FUNCTION, TaskStates
from rhapsody.backends.work import Work
from rhapsody.processes import end_group

__all__ = ["ConcurrentExecutionBackend"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

FEW = 8
"""Most functions that are started on the owner's loop, which stands still meanwhile."""

STOP_GRACE_SECONDS = 2.0
"""How long interrupted pool processes may take to end before they are killed."""

BARREN_POOLS = 3
"""Pools in a row that may break before any call has started in them."""


class ConcurrentExecutionBackend(BaseBackend):
    """Runs functions in threads or processes of this machine, and executables as children.

    Functions may be sync or async, lambdas and closures included. A cancelled async function is
    cancelled at its next await; a sync one is interrupted in a process, while in a thread it is
    reported CANCELED, runs on, and its result is dropped.

    Args:
        executor: Any `concurrent.futures.Executor`, which stays the caller's and is never shut
            down here; or "thread" or "process" for a pool of the backend's own. None is "thread".
        name: Name of the backend.
        max_workers: Size of the backend's own pool, in threads or processes; None is the
            executor's default.
        max_children: Executables that run at once; the others wait. None is 4 per CPU, at least
            32.

    Raises:
        TypeError: `executor` is none of these.
        ValueError: A number is not positive.
    """

    timeout_from_start = True

    def __init__(
        self,
        executor: Executor | str | None = None,
        name: str = "concurrent",
        *,
        max_workers: int | None = None,
        max_children: int | None = None,
    ) -> None:
        super().__init__(name)
        executor = "thread" if executor is None else executor
        if not isinstance(executor, Executor) and executor not in ("thread", "process"):
            raise TypeError(
                "executor must be a concurrent.futures.Executor, 'thread' or 'process', "
                f"not {executor!r}"
            )
        for field, value in (("max_workers", max_workers), ("max_children", max_children)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a whole number of at least 1, not {value!r}")
        self._wanted = executor
        self._max_workers = max_workers
        self._max_children = max_children or max(32, 4 * (os.cpu_count() or 1))
        self._pool: Executor | None = None
        self._marks: process_calls.Marks | None = None
        self._barren = 0
        self._children = GuardedGroups()
        self._slots: asyncio.Semaphore | None = None
        self._loops: dict[Work, _LoopInThread] = {}
        self._warned: set[str] = set()

    @property
    def executor(self) -> Executor | None:
        """The executor in use; None before the start of a pool of the backend's own."""
        return self._wanted if isinstance(self._wanted, Executor) else self._pool

    @property
    def _in_threads(self) -> bool:
        return self._wanted == "thread" or isinstance(self._wanted, ThreadPoolExecutor)

    async def start(self) -> None:
        """Make the pool; with processes, listen for which calls start in which of them."""
        if not self._in_threads and multiprocessing.get_start_method(allow_none=True) == "dragon":
            raise BackendError(
                self.name,
                "process pools of the standard library do not work in a program that called "
                'multiprocessing.set_start_method("dragon"); leave that call out, use threads '
                "here, or DragonExecutionBackendV3 for functions in processes",
            )
        self._slots = asyncio.Semaphore(self._max_children)
        self._pool = self._make_pool()
        if not self._in_threads:
            self._marks = process_calls.Marks()

    def _make_pool(self) -> Executor:
        if isinstance(self._wanted, Executor):
            return self._wanted
        if self._wanted == "thread":
            return ThreadPoolExecutor(self._max_workers, thread_name_prefix=f"rhapsody-{self.name}")
        # Not fork: this process has threads, and a forked child of theirs can deadlock.
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        return ProcessPoolExecutor(
            self._max_workers, multiprocessing.get_context(method), process_calls.prepare_worker
        )

    async def stop(self) -> None:
        """End the pool, if it is the backend's own, and the guard of executables."""
        await asyncio.to_thread(self._children.close)
        if self._pool is not None and self._pool is not self._wanted:
            await self._stop_pool(self._pool)
        self._pool = None
        if self._marks is not None:
            self._marks.close()
            self._marks = None

    async def _stop_pool(self, pool: Executor) -> None:
        workers = _workers(pool)
        if not workers:
            # Threads cannot be stopped: what still runs is left behind.
            pool.shutdown(wait=False, cancel_futures=True)
            return
        ended = asyncio.ensure_future(asyncio.to_thread(pool.shutdown, cancel_futures=True))
        done, _ = await asyncio.wait([ended], timeout=STOP_GRACE_SECONDS)
        if not done:
            _kill(workers)
        await ended

    def abandon(self) -> None:
        """Kill executables, and the processes of the backend's own pool."""
        for pid in tuple(self._children):
            end_group(pid, signal.SIGKILL)
        self._children.close()
        if self._pool is not None and self._pool is not self._wanted:
            _kill(_workers(self._pool))
        if self._marks is not None:
            self._marks.remove_directory()

    def hand_over(self, works: list[Work]) -> None:
        """Start a few functions in threads at once, however busy the service loop is."""
        # Not with a caller's own class, whose `submit` might block the owner's loop. A shutdown
        # that begins after `is_up` was read finds the tasks among the active ones and ends them.
        direct = len(works) <= FEW and self.is_up and type(self._pool) is ThreadPoolExecutor
        if direct and all(work.kind == FUNCTION for work in works):
            for work in works:
                self.begin(work)
        else:
            super().hand_over(works)

    def begin(self, work: Work) -> None:
        """Give a function to a pool of threads, which report its end; start other tasks."""
        if work.options:
            self._warn_of_unknown(work)
        if work.kind != FUNCTION or not self._in_threads:
            super().begin(work)
            return
        try:
            assert self._pool is not None
            call = self._submit(self._pool, self._call_here, work)
        except Exception as error:
            self.fail(work, error)
        else:
            call.add_done_callback(functools.partial(self._on_call_over, work))

    def _submit(self, pool: Executor, function: Callable[..., T], *args: Any) -> Future[T]:
        try:
            return pool.submit(function, *args)
        except BrokenExecutor:
            raise
        except Exception as error:
            raise BackendError(self.name, f"its executor does not take tasks: {error}") from error

    def _on_call_over(self, work: Work, call: Future[None]) -> None:
        # What the executor itself did to it: a call that has run has reported its end already.
        if call.cancelled():
            self.stopped(work)
        elif (error := call.exception()) is not None:
            self.fail(work, error)

    def _call_here(self, work: Work) -> None:
        """Call a function in this thread of the pool; an async one on a loop of its own here."""
        if not self.is_active(work):  # cancelled while it waited for a thread
            return
        self.running(work)
        task = work.task
        try:
            value = task["function"](*(task.get("args") or ()), **(task.get("kwargs") or {}))
            if inspect.isawaitable(value):
                value = self._await_here(work, value)
        except BaseException as error:  # no exception may upset the executor
            self.fail(work, error)
        else:
            self.finish(work, TaskStates.DONE, {"return_value": value})

    def _await_here(self, work: Work, awaitable: Any) -> Any:
        self._loops[work] = loop = _LoopInThread()
        try:
            return asyncio.run(loop.run(awaitable, lambda: self.is_active(work)))
        finally:
            del self._loops[work]

    def interrupt(self, work: Work) -> None:
        """Cancel an async function at its next await; a sync one in a thread cannot be stopped."""
        super().interrupt(work)
        if (loop := self._loops.get(work)) is not None:
            loop.cancel()

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run a function in the pool's processes, or an executable as a child."""
        if work.kind == EXECUTABLE:
            assert self._slots is not None
            async with self._slots:
                self.running(work)
                return await Executable.from_task(work.task, work.work_dir).run(self._children)
        return {"return_value": await self._in_process(work)}

    def _warn_of_unknown(self, work: Work) -> None:
        for key in work.options.keys() - OPTIONS - self._warned:
            self._warned.add(key)
            logger.warning(
                "backend '%s' has no use for the option %r and ignores it (first seen on task "
                "%s); it knows %s",
                self.name,
                key,
                work.uid,
                ", ".join(sorted(OPTIONS)),
            )

    async def _in_process(self, work: Work) -> Any:
        task, marks = work.task, self._marks
        assert marks is not None
        data = await asyncio.to_thread(
            process_calls.dump_call,
            work.uid,
            task["function"],
            task.get("args") or (),
            task.get("kwargs") or {},
        )
        token = marks.expect(functools.partial(self._on_call_started, work))
        try:
            outcome = await self._outcome(work, data, token, marks)
        finally:
            marks.forget(token)
        return await asyncio.to_thread(process_calls.load_outcome, outcome)

    def _on_call_started(self, work: Work) -> None:
        self._barren = 0
        self.running(work)

    async def _outcome(
        self, work: Work, data: bytes, token: str, marks: process_calls.Marks
    ) -> bytes:
        while True:
            pool = self._pool
            assert pool is not None
            try:
                return await self._call_in(pool, data, token, marks)
            except BrokenExecutor as error:
                started = marks.started(token)
                if pool is self._pool and pool is not self._wanted:
                    self._barren += 1
                    self._pool = self._make_pool()
                if started or pool is self._wanted:
                    raise WorkerDied(
                        work.uid, "a worker process of the pool died while this task ran in it"
                    ) from error
                if self._barren >= BARREN_POOLS:
                    raise TaskExecutionError(
                        work.uid,
                        "the pool's processes die before any task starts; a script that uses "
                        "processes needs its entry point under `if __name__ == '__main__':`",
                    ) from error

    async def _call_in(
        self, pool: Executor, data: bytes, token: str, marks: process_calls.Marks
    ) -> bytes:
        future = self._submit(pool, process_calls.run_call, data, token, marks.directory)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            marks.interrupt(token, future)
            raise


def _workers(pool: Executor) -> list[BaseProcess]:
    # A pool's processes have no public name before Python 3.14, which has `kill_workers`. None
    # for threads, and after `shutdown`.
    return list((getattr(pool, "_processes", None) or {}).values())


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


class _LoopInThread:
    """The loop of an async function in a thread, as those who may cancel it see it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, awaitable: Any, is_wanted: Callable[[], bool]) -> Any:
        """Await it, in the thread."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._task is not None and not is_wanted():
            self._task.cancel()
        return await awaitable

    def cancel(self) -> None:
        """Cancel it at its next await; from any thread."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just ended with it
                self._loop.call_soon_threadsafe(self._task.cancel)
