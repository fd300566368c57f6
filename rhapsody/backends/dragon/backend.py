"""Tasks on the Dragon runtime: worker processes on every node of an allocation."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rhapsody.allocation import Node, allocation
from rhapsody.backends.core.work import Work, refuse_unknown
from rhapsody.backends.data.store import checked_memory_limit
from rhapsody.backends.dragon.nodes import choose_nodes, head_first, most_workers
from rhapsody.backends.dragon.ranks import JOB_OPTIONS, needs_job, ranks_of
from rhapsody.backends.dragon.runtime import require_runtime
from rhapsody.backends.executables.executable import OPTIONS as EXECUTABLE_OPTIONS
from rhapsody.backends.workers.backend import WorkerBackend, check_retries, mode_of
from rhapsody.backends.workers.manager import Limits
from rhapsody.errors import UnsupportedTaskError
from rhapsody.global_services import mend_requests
from rhapsody.resources import Resources
from rhapsody.suggest import suggest_parameters
from rhapsody.validation import plain_number

if importlib.util.find_spec("dragon") is not None:
    # A script may call `multiprocessing.set_start_method("dragon")` after importing this module;
    # the start method exists once Dragon is imported.
    import dragon  # noqa: F401

if TYPE_CHECKING:
    from rhapsody.backends.dragon.worker_manager import DragonWorkers

__all__ = ["OPTIONS", "DragonExecutionBackend", "DragonExecutionBackendV3"]

logger = logging.getLogger(__name__)

OPTIONS = EXECUTABLE_OPTIONS | JOB_OPTIONS | {"retries"}
"""Keys of `task_backend_specific_kwargs` that this backend accepts."""


class DragonExecutionBackend(WorkerBackend["DragonWorkers"]):
    """Runs functions and executables in worker processes that Dragon places.

    The program must be started with the `dragon` command. Workers start as tasks arrive, and run
    many tasks each. A sync function or an executable has a worker to itself; up to
    `async_per_worker` async functions share a worker and its event loop.

    If a worker dies, the tasks that it was running are FAILED with `WorkerDied`, or run again up to
    `retries` times. Its other tasks are given to other workers.

    Options of a task, in `task_backend_specific_kwargs`: `timeout` (seconds) for every task,
    `retries` for tasks that run in workers, `cwd`, `env` and `shell` for executables.

    `ranks` makes a task a job of that many processes, in a Dragon process group beside the workers.
    Further options of a job: `gpus_per_rank`, `nodes` (a number, or host names), `policy` (a Dragon
    `Policy`) and `pmi` ("cray" or "pmix"). Instead of `ranks`, `process_template` (a dict of
    `ProcessTemplate` arguments) or `process_templates` (a list of pairs of a number and a dict)
    describe the processes. The result has `ranks`, a list with a dict for each rank: `rank`,
    `exit_code`, and `stdout` and `stderr`, or `return_value`. A function's `return_value` is rank
    0's; an executable's `stdout` is that of all ranks, in order. The environment variables
    RHAPSODY_RANK and RHAPSODY_RANKS tell a rank its number and the number of ranks.

    `resources` of a task make it a job too, unless it asks for one CPU only. Its ranks then get
    CPUs, GPUs and memory that no other job and no replica of a model uses, on nodes that have them
    free. Jobs wait for each other, and not for the workers.

    Args:
        num_workers: Maximum number of worker processes at a time, over all nodes; never more than
            8 per CPU. None: one per CPU, less one on the node where the program itself runs.
        name: Name of the backend.
        nodes: How many nodes of the allocation to use, the program's own first, or their host
            names. None: all nodes.
        async_per_worker: Maximum number of async functions that one worker runs at a time.
        cancel_grace: Seconds that a cancelled task may take to end before its worker is killed.
        batch_kwargs: Options of Dragon's `Batch`, as in `rhapsody-py`. They have no effect.
        memory_limit: Maximum number of bytes of large arguments and results in shared memory; more
            goes to the temporary folder. None: half of the shared memory of the machine. 0: they
            are copied through sockets.

    Raises:
        MissingExtraError: The package `dragonhpc` is not installed.
        BackendError: The program was not started with the `dragon` command.
        ValueError: A number is not positive.
    """

    prints_to = "the standard output and error of this program, from all nodes"
    resource_names = frozenset(Resources.model_fields)

    @suggest_parameters
    def __init__(
        self,
        num_workers: int | None = None,
        name: str = "dragon",
        *,
        nodes: int | Sequence[str] | None = None,
        async_per_worker: int = 64,
        cancel_grace: float = 2.0,
        batch_kwargs: Mapping[str, Any] | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(name)
        require_runtime(type(self).__name__, name)
        if batch_kwargs:
            logger.warning(
                "batch_kwargs has no effect (%s): this backend does not use Dragon's Batch; see "
                "its parameters num_workers and nodes",
                ", ".join(map(str, batch_kwargs)),
            )
        num_workers, nodes = plain_number(num_workers), plain_number(nodes)
        async_per_worker = plain_number(async_per_worker)
        for field, value in (
            ("num_workers", num_workers),
            ("async_per_worker", async_per_worker),
            ("nodes", nodes if isinstance(nodes, int) else None),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a whole number of at least 1, got {value!r}")
        if not cancel_grace >= 0:
            raise ValueError(f"cancel_grace must be a number of seconds, got {cancel_grace!r}")
        self._memory_limit = checked_memory_limit(memory_limit)
        self._num_workers = num_workers
        self._wanted_nodes = nodes
        self._async_per_worker = async_per_worker
        self._grace = cancel_grace
        self._nodes: list[Node] = []

    async def start(self) -> None:
        """Start an agent on each node but the head node. Workers start with the tasks."""
        from rhapsody.backends.dragon.worker_manager import DragonWorkers

        mend_requests()
        nodes = head_first(await asyncio.to_thread(allocation))
        self._nodes = choose_nodes(nodes, self._wanted_nodes)
        limits = Limits(
            most_workers(self.name, self._nodes, self._num_workers),
            self._async_per_worker,
            self._grace,
            self._memory_limit,
        )
        manager = DragonWorkers(self.name, self._nodes, limits, mode_of, self)
        await manager.start()
        self._manager = manager

    async def stop(self) -> None:
        """Stop the workers and the agents."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.stop()

    # -- tasks ------------------------------------------------------------------------------------

    def check(self, work: Work) -> None:
        """Refuse options that this backend does not have."""
        super().check(work)
        if not work.options:
            return
        is_job = bool(work.options.keys() & JOB_OPTIONS) or needs_job(work.resources)
        if is_job and work.options.get("stdin") is not None:
            raise UnsupportedTaskError(
                work.uid, "a job of several ranks has no standard input; leave 'stdin' out"
            )
        if needs_job(work.resources):
            self._check_options_beside_resources(work)
        refuse_unknown(work, OPTIONS, self.name)
        check_retries(work)

    def _check_options_beside_resources(self, work: Work) -> None:
        refused = sorted(work.options.keys() & (JOB_OPTIONS | {"retries"}) - {"pmi"})
        if refused:
            raise UnsupportedTaskError(
                work.uid,
                f"{', '.join(map(repr, refused))} cannot be combined with 'resources', which "
                "make the task a job",
            )

    def dispatch(self, works: Sequence[Work]) -> None:
        """Hand tasks to the scheduler, and tasks of several ranks to the jobs."""
        assert self._manager is not None
        with_modes = []
        for work in works:
            if not self.is_active(work):
                continue  # cancelled before it was dispatched
            if work.options.keys() & JOB_OPTIONS or needs_job(work.resources):
                self._dispatch_job(work, self._manager)
            else:
                with_modes.append((work, mode_of(work)))
        self._manager.scheduler.submit(with_modes)

    def _dispatch_job(self, work: Work, manager: DragonWorkers) -> None:
        try:
            manager.jobs.submit(work, ranks_of(work.uid, work.options, self._nodes))
        except Exception as error:
            self.report_failed(work, error)

    def _cancel_in_workers(self, manager: DragonWorkers, work: Work) -> bool:
        return manager.jobs.cancel(work) or super()._cancel_in_workers(manager, work)


DragonExecutionBackendV3 = DragonExecutionBackend
