"""The concurrent backend: functions in threads or processes of this machine, and executables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from concurrent.futures.thread import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.concurrent.executor_calls import ExecutorCalls
from rhapsody.backends.concurrent.local_queue import LocalQueue, request_of
from rhapsody.backends.concurrent.local_workers import LocalWorkers
from rhapsody.backends.concurrent.thread_pool import ThreadPool, default_threads
from rhapsody.backends.concurrent.threads import ThreadCalls
from rhapsody.backends.core.accounts import Capacity
from rhapsody.backends.core.execution import Location, this_host
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import Work, refuse_resources, refuse_unknown
from rhapsody.backends.data.store import checked_memory_limit
from rhapsody.backends.executables.descriptors import executables_within_limit
from rhapsody.backends.executables.executable import OPTIONS, Executable
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.backends.protocol import EXECUTABLE, FUNCTION
from rhapsody.backends.workers.backend import WorkerBackend, check_retries, mode_of
from rhapsody.backends.workers.manager import Limits
from rhapsody.backends.workers.worker_state import EXCLUSIVE, OwnCall
from rhapsody.errors import (
    BackendError,
    ConfigurationError,
    ResourceError,
    UnsupportedTaskError,
)
from rhapsody.gpus import this_machine
from rhapsody.processes import signal_group
from rhapsody.resources import machine_memory
from rhapsody.suggest import suggest_parameters
from rhapsody.validation import plain_number

__all__ = ["ConcurrentExecutionBackend"]

MAX_DIRECT_TASKS = 8
"""Maximum number of functions that one call submits to a caller's threads; it blocks the owner's
loop."""

CANCEL_GRACE_SECONDS = 2.0
"""How long a cancelled function in a worker process may take to end before the worker is killed."""


class ConcurrentExecutionBackend(WorkerBackend[LocalWorkers]):
    """Runs functions in threads or processes of this machine, and executables as children.

    Functions may be sync or async, lambdas and closures included. A cancelled async function is
    cancelled at its next `await`. A cancelled sync function is interrupted in a process; in a
    thread it is reported CANCELED and continues, and its result is dropped.

    If a worker process dies, the task that it was running is FAILED with `WorkerDied`, or runs
    again up to `retries` times (an option in `task_backend_specific_kwargs`, for functions in
    worker processes). Its other tasks are given to other workers.

    Args:
        executor: "thread" for a pool of threads, "process" for worker processes, or any
            `concurrent.futures.Executor`, which the backend never shuts down. None: "thread".
        name: Name of the backend.
        max_workers: Maximum number of threads or worker processes of the backend's own. None: the
            default of `ThreadPoolExecutor`, or one process for each CPU.
        max_children: Maximum number of executables that run at once; others wait. None: 4 per CPU,
            but at least 32. The limit of open files may allow fewer.
        async_per_worker: Maximum number of async functions that one worker process runs at a time,
            on one event loop. With 1, each has a process and its event loop to itself.
        memory_limit: Maximum number of bytes of large arguments and results of worker processes in
            shared memory; more goes to the temporary folder. None: half of the shared memory of the
            machine. 0: they are copied through sockets.

    Raises:
        TypeError: `executor` has the wrong type.
        ValueError: A number is not positive.
        ConfigurationError: An option of worker processes is given without them.
    """

    prints_to = "the standard output and error of this program"
    resource_names = frozenset({"cpus", "env", "exclusive", "gpus", "memory"})

    @suggest_parameters
    def __init__(
        self,
        executor: Executor | str | None = None,
        name: str = "concurrent",
        *,
        max_workers: int | None = None,
        max_children: int | None = None,
        async_per_worker: int = 1,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(name)
        executor = "thread" if executor is None else executor
        if not isinstance(executor, Executor) and executor not in ("thread", "process"):
            raise TypeError(
                "executor must be a concurrent.futures.Executor, 'thread' or 'process', "
                f"got {executor!r}"
            )
        max_workers, max_children = plain_number(max_workers), plain_number(max_children)
        for field, value in (
            ("max_workers", max_workers),
            ("max_children", max_children),
            ("async_per_worker", async_per_worker),
        ):
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < 1
            ):
                raise ValueError(f"{field} must be a whole number of at least 1, got {value!r}")
        if executor != "process":
            for field, given in (
                ("async_per_worker", async_per_worker != 1),
                ("memory_limit", memory_limit is not None),
            ):
                if given:
                    raise ConfigurationError(
                        f"'{field}' applies only to worker processes: "
                        f'ConcurrentExecutionBackend("process", {field}=...)'
                    )
        self._memory_limit = checked_memory_limit(memory_limit)
        self._requested = executor
        self.carries_contexts = executor == "thread" or isinstance(executor, ThreadPoolExecutor)
        self._max_workers = max_workers
        self._async_per_worker = async_per_worker
        self._max_children = max_children or max(32, 4 * (os.cpu_count() or 1))
        self._threads: ThreadCalls | None = None
        self._pool: ThreadPool | None = None
        self._calls: ExecutorCalls | None = None
        self._children = GuardedGroups()
        self._queue: LocalQueue | None = None

    @property
    def executor(self) -> Executor | None:
        """The executor in use; None for worker processes, or if the backend's own does not run."""
        if isinstance(self._requested, Executor):
            return self._requested
        return self._threads.executor if self._threads is not None else None

    async def start(self) -> None:
        """Create the pool of threads, if it is the backend's own. Workers start with the tasks."""
        given = self._requested if isinstance(self._requested, Executor) else None
        # Raises the soft limit of open files if needed, also for a `max_children` of the caller.
        allowed = executables_within_limit(self._max_children)
        size = self._max_workers or (
            _usable_cpus() if self._requested == "process" else default_threads()
        )
        self._queue = await asyncio.to_thread(self._make_queue, size, allowed)
        if self._requested == "thread":
            self._threads = self._pool = ThreadPool(self, size, self._queue)
        elif isinstance(given, ThreadPoolExecutor):
            self._threads = ThreadCalls(self, given, self._max_workers)
        elif given is None:
            self._manager = await self._start_workers(size)
        else:
            self._calls = ExecutorCalls(self, given)

    async def _start_workers(self, size: int) -> LocalWorkers:
        limits = Limits(size, self._async_per_worker, CANCEL_GRACE_SECONDS, self._memory_limit)
        try:
            manager = LocalWorkers(self.name, limits, self._mode_of, self)
        except RuntimeError as error:
            raise BackendError(self.name, str(error)) from error
        await manager.start()
        return manager

    def _mode_of(self, work: Work) -> str:
        return EXCLUSIVE if self._async_per_worker == 1 else mode_of(work)

    def _make_queue(self, places: int, children: int) -> LocalQueue:
        node = replace(this_machine(), cpus=places)
        capacity = Capacity(node, machine_memory(), children)
        wake = self._wake_thread if self._requested == "thread" else None
        return LocalQueue(capacity, self.is_active, self._start_granted, wake)

    def _wake_thread(self) -> None:
        if self._pool is not None:
            self._pool.wake()

    def _start_granted(self, work: Work) -> None:
        service_loop().call(self._begin_granted, work)

    def _begin_granted(self, work: Work) -> None:
        cpus = _cpus_of(work)
        if cpus and self._manager is not None and self.is_active(work):
            self._manager.scheduler.reserve(work, cpus, partial(self._begin_reserved, work))
        else:
            self._begin_reserved(work)

    def _begin_reserved(self, work: Work) -> None:
        if not self.is_active(work):
            self._release(work)
        elif work.kind == EXECUTABLE:
            super().begin(work)
        elif self._manager is not None:
            # In a worker of its own: CUDA reads its variables once in each process.
            call = OwnCall(
                work, self._mode_of(work), _environment(work), partial(self._release, work)
            )
            self._manager.scheduler.submit_alone(call)

    def _release(self, work: Work) -> None:
        if self._manager is not None:
            self._manager.scheduler.release(work)
        if self._queue is not None:
            self._queue.release(work)

    async def stop(self) -> None:
        """Stop the guard of executables, and the threads or workers of the backend's own."""
        await asyncio.to_thread(self._children.close)
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.stop()
        if self._threads is not None:
            await self._threads.stop()
        if self._calls is not None:
            self._calls.stop()
        self._threads = self._pool = self._calls = self._queue = None

    def kill_children(self) -> None:
        """Kill executables, and the worker processes."""
        for pid in tuple(self._children):
            signal_group(pid, signal.SIGKILL)
        self._children.close()
        if self._manager is not None:
            self._manager.kill_children()
        if self._calls is not None:
            self._calls.kill_children()

    def check(self, work: Work) -> None:
        """Refuse a task that cannot run, or that has an unknown option."""
        super().check(work)
        if work.kind == FUNCTION and work.task.get("resources") is not None:
            self._check_resources_of_function(work)
        if self._requested == "process" and work.kind == FUNCTION:
            check_retries(work)
            refuse_unknown(work, OPTIONS | {"retries"}, self.name)
        else:
            refuse_unknown(work, OPTIONS, self.name)

    def _check_resources_of_function(self, work: Work) -> None:
        if isinstance(self._requested, Executor):
            refuse_resources(work, frozenset(), self.name)
        resources = work.resources
        if self._requested == "thread" and resources is not None and resources.env:
            raise UnsupportedTaskError(
                work.uid,
                "'env' does not apply to a function in a thread, which shares the environment of "
                "the program; use processes, or an executable",
            )

    def hand_over(self, works: list[Work]) -> None:
        """Give functions to the threads at once; pass other tasks to the service loop.

        This is a second way to start a task, beside `begin`. It bypasses the service loop, which
        may be busy.
        """
        if self._pool is not None and self.is_up:
            # If a shutdown begins now, it finds the tasks among the active ones and cancels them.
            plain = [work for work in works if _is_plain(work)]
            if plain:
                self._pool.add_plain(plain)
            if len(plain) < len(works):
                executables = self._add_others(work for work in works if not _is_plain(work))
                super().hand_over(executables)
            return
        threads = self._threads
        if (
            threads is not None
            and self.is_up
            and len(works) <= MAX_DIRECT_TASKS
            # The `submit` of a caller's own class might block the owner's loop.
            and type(threads.executor) is ThreadPoolExecutor
            and all(work.kind == FUNCTION for work in works)
        ):
            for work in works:
                threads.begin(work)
        else:
            super().hand_over(works)

    def _add_others(self, works: Iterable[Work]) -> list[Work]:
        """Queue functions that ask for resources or have a priority; return the executables."""
        executables = []
        for work in works:
            if work.kind == FUNCTION:
                self.begin(work)
            else:
                executables.append(work)
        return executables

    def dispatch(self, works: Sequence[Work]) -> None:
        """Give functions without resources to the workers, and start other tasks one by one."""
        if self._manager is not None:
            functions = [w for w in works if _is_for_any_worker(w) and self.is_active(w)]
            self._manager.scheduler.submit((work, self._mode_of(work)) for work in functions)
            works = [work for work in works if not _is_for_any_worker(work)]
        super().dispatch(works)

    def begin(self, work: Work) -> None:
        """Queue what needs resources or a thread; start functions of an executor by `execute`."""
        assert self._queue is not None
        try:
            if self._pool is not None:
                self._pool.add(work, request_of(work))
            elif work.kind == EXECUTABLE or self._manager is not None:
                self._queue.add(work, request_of(work))
            elif self._threads is not None:
                self._threads.begin(work)
            else:
                super().begin(work)
        except ResourceError as error:
            self.report_failed(work, error)

    def interrupt(self, work: Work) -> None:
        """Interrupt a task; a sync function in a thread continues, and its result is dropped."""
        if work.kind == FUNCTION:
            super().interrupt(work)
        else:
            BaseBackend.interrupt(self, work)
        if self._threads is not None:
            self._threads.interrupt(work)
        if self._manager is not None and self._manager.scheduler.drop_reservation(work):
            self._release(work)
        if self._queue is not None and work.grant is None:
            self._queue.advance()  # others may have waited for this task

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run an executable as a child, or a function in the caller's executor."""
        if work.kind == EXECUTABLE:
            queue, manager = self._queue, self._manager
            assert queue is not None
            try:
                self.report_running(work)
                executable = _executable_of(work)
                located = partial(_locate, work)
                return await executable.run(self._children, work.keep_output, located)
            finally:
                if manager is not None:
                    manager.scheduler.release(work)
                queue.release(work)
        assert self._calls is not None
        return {"return_value": await self._calls.run(work)}


def _usable_cpus() -> int:
    with contextlib.suppress(AttributeError):  # macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_for_any_worker(work: Work) -> bool:
    """Return whether a task is a function that any worker may run beside others."""
    return work.kind == FUNCTION and work.task.get("resources") is None


def _is_plain(work: Work) -> bool:
    """Return whether a task is a function that asks for nothing but one CPU."""
    task = work.task
    return work.kind == FUNCTION and not task.get("priority") and task.get("resources") is None


def _locate(work: Work, pid: int) -> None:
    work.location = Location(this_host(), pid)


def _executable_of(work: Work) -> Executable:
    """Return the executable of a task, limited to its GPUs and its memory."""
    executable = Executable.from_task(work.task, work.work_dir)
    grant = work.grant
    if work.resources is None or grant is None:
        return executable
    env = {**_environment(work), **(executable.env or {})}
    return replace(executable, env=env, memory=int(work.resources.memory) or None)


def _cpus_of(work: Work) -> int:
    """Return how many CPUs a task takes from the workers that run plain functions."""
    grant = work.grant
    if grant is None:
        return 0
    return grant.places[0].node.cpus if grant.request.exclusive else grant.request.cpus


def _environment(work: Work) -> dict[str, str]:
    """Return the variables that a task asks for, and those that name its GPUs."""
    resources, grant = work.resources, work.grant
    env = dict(resources.env) if resources is not None else {}
    return {**env, **(grant.places[0].environment if grant is not None else {})}
