"""Tasks on the Dragon runtime: worker processes on every node of an allocation."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import UnsupportedTaskError
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.dragon_ranks import JOB_OPTIONS, ranks_of
from rhapsody.backends.dragon_runtime import (
    allocation,
    choose_hosts,
    most_workers,
    require_runtime,
)
from rhapsody.backends.dragon_seat import CONCURRENT, EXCLUSIVE
from rhapsody.backends.executables import OPTIONS as EXECUTABLE_OPTIONS
from rhapsody.backends.protocol import FUNCTION, TaskStates
from rhapsody.backends.work import Work, failure_fields, refuse_unknown

if importlib.util.find_spec("dragon") is not None:
    # Whoever imports this module may call `multiprocessing.set_start_method("dragon")` next, and
    # it is this import that makes the method known.
    import dragon  # noqa: F401

if TYPE_CHECKING:
    from rhapsody.backends.dragon_crew import DragonCrew
    from rhapsody.backends.dragon_jobs import Jobs
    from rhapsody.backends.dragon_pool import Pool
    from rhapsody.backends.dragon_runtime import Host

__all__ = ["OPTIONS", "DragonExecutionBackend", "DragonExecutionBackendV3"]

logger = logging.getLogger(__name__)

OPTIONS = EXECUTABLE_OPTIONS | JOB_OPTIONS | {"retries"}
"""Keys of `task_backend_specific_kwargs` that this backend knows."""


class DragonExecutionBackend(BaseBackend):
    """Runs functions and executables in worker processes that Dragon places.

    The program has to be started with the `dragon` command. Workers are started as work comes and
    serve many tasks each. A sync function or an executable has a worker to itself; async functions
    share one, up to `async_per_worker` of them on one event loop, so that those that wait for
    something do not take a worker each.

    A worker that dies takes with it what it was running, which is FAILED with `WorkerDied`, or run
    again up to `retries` times; what it had not begun goes to others.

    Options of a task, in `task_backend_specific_kwargs`: `timeout` (seconds) for every task,
    `retries` for those in workers, `cwd`, `env` and `shell` for executables.

    `ranks` makes a task a job of so many processes, a Dragon process group of its own beside the
    workers: `gpus_per_rank`, `nodes` (a number, or host names), `policy` (a Dragon `Policy`) and
    `pmi` ("cray" or "pmix") say how. `process_template` (a dict of `ProcessTemplate`'s arguments)
    and `process_templates` (a list of number and dict) say the same in Dragon's words. The result
    has `ranks`, a list with a dict for each rank: `rank`, `exit_code`, and `stdout` and `stderr`,
    or `return_value`. A function's `return_value` is rank 0's, and an executable's `stdout` that of
    all ranks, in order. Ranks find their number in the environment, as RHAPSODY_RANK and
    RHAPSODY_RANKS.

    Args:
        num_workers: Most worker processes at once, over all nodes; never more than 8 for each CPU.
            None is one per CPU, less one on the node where the program itself runs.
        name: Name of the backend.
        nodes: How many nodes of the allocation to use, the program's own first, or their host
            names. None is all.
        async_per_worker: Most async functions that one worker runs at a time.
        cancel_grace: Seconds that a cancelled task may take to end before its worker is killed.

    Raises:
        MissingExtraError: The package `dragonhpc` is not installed.
        BackendError: The program was not started with the `dragon` command.
        ValueError: A number is not positive.
    """

    timeout_from_start = True

    def __init__(
        self,
        num_workers: int | None = None,
        name: str = "dragon",
        *,
        nodes: int | Sequence[str] | None = None,
        async_per_worker: int = 64,
        cancel_grace: float = 2.0,
    ) -> None:
        super().__init__(name)
        require_runtime(type(self).__name__, name)
        for field, value in (
            ("num_workers", num_workers),
            ("async_per_worker", async_per_worker),
            ("nodes", nodes if isinstance(nodes, int) else None),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a whole number of at least 1, not {value!r}")
        if not cancel_grace >= 0:
            raise ValueError(f"cancel_grace must be a number of seconds, not {cancel_grace!r}")
        self._num_workers = num_workers
        self._nodes = nodes
        self._together = async_per_worker
        self._grace = cancel_grace
        self._crew: DragonCrew | None = None
        self._pool: Pool | None = None
        self._jobs: Jobs | None = None
        self._hosts: list[Host] = []

    def get_statistics(self) -> dict[str, Any]:
        """Describe the backend.

        Returns:
            `workers` (ready), `workers_starting`, `tasks_waiting` and `tasks_placed`; empty before
            the start.
        """
        return self._pool.statistics() if self._pool is not None else {}

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready, each on its own host."""
        return self._pool.pids() if self._pool is not None else []

    async def start(self) -> None:
        """Start an agent on each other node; workers come with the tasks."""
        from rhapsody.backends.dragon_crew import DragonCrew
        from rhapsody.backends.dragon_jobs import Jobs
        from rhapsody.backends.dragon_pool import Pool

        self._hosts = hosts = choose_hosts(await asyncio.to_thread(allocation), self._nodes)
        limit = most_workers(self.name, hosts, self._num_workers)
        crew = DragonCrew(self.name, hosts, _lane_of)
        await crew.open()
        self._jobs = crew.jobs = Jobs(hosts, self._grace, crew, self)
        self._pool = crew.pool = Pool(
            self.name, hosts, limit, self._together, self._grace, crew, self
        )
        self._crew = crew

    async def stop(self) -> None:
        """End the workers."""
        pool, crew = self._pool, self._crew
        self._pool = self._crew = self._jobs = None
        if pool is not None and crew is not None:
            await pool.close()
            await crew.close()

    # -- tasks ------------------------------------------------------------------------------------

    def check(self, work: Work) -> None:
        """Refuse options that this backend does not have."""
        super().check(work)
        if not work.options:
            return
        refuse_unknown(work, OPTIONS, self.name)
        retries = work.options.get("retries") or 0
        if not isinstance(retries, int) or retries < 0:
            raise UnsupportedTaskError(
                work.uid, f"'retries' must be a whole number, 0 or more, not {retries!r}"
            )

    def dispatch(self, works: Sequence[Work]) -> None:
        """Hand tasks to the pool, and jobs of several ranks to theirs."""
        assert self._pool is not None
        lanes = []
        for work in works:
            if not self.is_active(work):
                continue  # cancelled before its turn came
            if work.options.keys() & JOB_OPTIONS:
                self._dispatch_job(work)
            else:
                lanes.append((work, _lane_of(work)))
        self._pool.submit(lanes)

    def _dispatch_job(self, work: Work) -> None:
        assert self._jobs is not None
        try:
            ranks = ranks_of(work.uid, work.options, self._hosts)
        except Exception as error:
            self.failed(work, error)
        else:
            self._jobs.submit(work, ranks)

    def interrupt(self, work: Work) -> None:
        """Have a job or the pool stop a task."""
        if self._pool is None or self._jobs is None:
            super().interrupt(work)
            return
        work.job = asyncio.get_running_loop().create_future()
        if not (self._jobs.cancel(work) or self._pool.cancel(work)):
            work.job = None  # it came while this started, and is about to be dispatched
            super().interrupt(work)

    # -- what the pool reports --------------------------------------------------------------------

    def done(self, work: Work, fields: dict[str, Any]) -> None:
        """Report a task's result, which may be an executable's failure."""
        failed = fields.get("exception") is not None
        state = TaskStates.FAILED if failed else TaskStates.DONE
        self.finish(work, state, {**fields, **_files(work)})
        _release(work)

    def failed(self, work: Work, error: BaseException) -> None:
        """Report what a task failed with."""
        self.finish(work, TaskStates.FAILED, {**failure_fields(work, error), **_files(work)})
        _release(work)

    def cancelled(self, work: Work) -> None:
        """Report that a task was stopped, by its owner or by its timeout."""
        self.stopped(work)
        _release(work)


DragonExecutionBackendV3 = DragonExecutionBackend


def _files(work: Work) -> dict[str, str]:
    """Return where a function's output is, if it was asked for; an executable says so itself."""
    if work.kind != FUNCTION or not work.task.get("capture_stdio"):
        return {}
    path = os.path.join(work.work_dir, work.uid)
    return {stream: f"{path}.{stream}" for stream in ("stdout", "stderr")}


def _release(work: Work) -> None:
    if work.job is not None and not work.job.done():
        work.job.set_result(None)


def _lane_of(work: Work) -> str:
    if work.kind != FUNCTION:
        return EXCLUSIVE
    function = work.task["function"]
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = getattr(function, "__call__", function)  # noqa: B004
    return CONCURRENT if inspect.iscoroutinefunction(function) else EXCLUSIVE
