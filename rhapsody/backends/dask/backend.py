"""Backend for tasks on a Dask cluster: one on this machine, or any other."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import Work, refuse_unknown
from rhapsody.backends.dask.placement import Placement, is_sendable
from rhapsody.backends.data.store import checked_memory_limit
from rhapsody.backends.executables.executable import OPTIONS as EXECUTABLE_OPTIONS
from rhapsody.backends.protocol import EXECUTABLE, KeptResult
from rhapsody.backends.workers.pickling import load_error
from rhapsody.errors import (
    BackendError,
    ConfigurationError,
    MissingExtraError,
    ResourceError,
    TaskExecutionError,
    UnsupportedTaskError,
    WorkerDied,
)
from rhapsody.scratch import Scratch
from rhapsody.suggest import suggest_parameters
from rhapsody.validation import is_number, must_be, plain_number

if TYPE_CHECKING:
    from distributed import KilledWorker

    from rhapsody.backends.dask.client import DaskClient
    from rhapsody.backends.dask.cluster import DaskCluster

__all__ = ["OPTIONS", "DaskExecutionBackend"]

logger = logging.getLogger(__name__)

OPTIONS = EXECUTABLE_OPTIONS | {
    "allow_other_workers",
    "keep_on_cluster",
    "key",
    "priority",
    "pure",
    "resources",
    "retries",
    "workers",
}
"""Keys of `task_backend_specific_kwargs` that this backend accepts."""


class DaskExecutionBackend(BaseBackend):
    """Runs functions and executables on the workers of a Dask cluster.

    Without `cluster` and `client` it starts a `LocalCluster`, and closes it at shutdown. This
    cluster listens on loopback only, uses TLS with a certificate of its own, and has no dashboard
    unless `resources` sets `dashboard_address`. A given cluster belongs to the caller and is left
    running; it should use TLS, since anyone who can connect to its scheduler can run code on it.

    Options of a task, in `task_backend_specific_kwargs`: `resources`, `workers`,
    `allow_other_workers`, `priority`, `retries`, `pure` and `key` have the meaning that they have
    in `Client.submit`; every task gets a key of its own unless `pure` or `key` is set.
    The resources `cpus`, `gpus` and `memory` of a task mean the worker's resources `CPU`, `GPU` and
    `MEMORY` (bytes); a cluster of the backend's own offers `CPU`, the threads of a worker. `nodes`
    names workers or hosts.
    `keep_on_cluster=True` leaves the result of a function on the cluster: `return_value` is then a
    `distributed.Future`, which later tasks of this backend accept as an argument and `gather`
    resolves. Executables take `cwd`, `env` and `shell`, and every task takes `timeout`.

    Cancelling ends an executable with its process group, and an async function at its next await.
    A sync function that is running is reported CANCELED at once; it runs on, another thread of the
    worker takes its place, and its result is dropped. `rhapsody` must be installed on scheduler and
    workers.

    Args:
        resources: Options of `LocalCluster`, such as `{"n_workers": 4, "threads_per_worker": 1}`.
        cluster: A running cluster (`LocalCluster`, `SLURMCluster`, `KubeCluster`, ...), sync or
            async, or the address of a scheduler.
        client: A connected `distributed.Client`, sync or async.
        name: Name of the backend.
        resource_timeout: Seconds that a task waits for workers that have the resources it asks
            for. None: 300 while the cluster is growing (adaptive, or jobs not yet started), else 0.
        memory_limit: Maximum number of bytes of large arguments and results in shared memory; more
            goes to files in the temporary folder. None: half of the shared memory of this machine.
            0: they travel through Dask, as those of workers on other machines always do.

    Raises:
        MissingExtraError: The package `distributed` is not installed.
        ConfigurationError: More than one of `resources`, `cluster` and `client` is given, or one
            of them or `resource_timeout` is invalid.
    """

    prints_to = "the standard output and error of their Dask workers"
    resource_names = frozenset({"cpus", "gpus", "memory", "nodes"})
    reports_running = True
    keeps_results = True
    timeout_from_start = True

    @suggest_parameters
    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        cluster: Any = None,
        client: Any = None,
        name: str = "dask",
        *,
        resource_timeout: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(name)
        if importlib.util.find_spec("distributed") is None:
            raise MissingExtraError(type(self).__name__, "distributed", "dask")
        if sum(given is not None for given in (resources, cluster, client)) > 1:
            raise ConfigurationError(
                "resources configures a new cluster, cluster and client name an existing one: "
                "give only one of the three"
            )
        if resources is not None and not isinstance(resources, Mapping):
            raise ConfigurationError(
                f"resources must be a dict, got {resources!r}; cluster= takes an existing cluster "
                "or its address"
            )
        timeout = plain_number(resource_timeout)
        if timeout is not None and not (is_number(timeout) and timeout >= 0):
            expected = "a number of seconds of at least 0"
            raise ConfigurationError(must_be("resource_timeout", expected, resource_timeout))
        if refused := {"asynchronous", "loop"} & set(resources or ()):
            raise ConfigurationError(
                f"resources cannot set {', '.join(sorted(refused))}; the backend sets it"
            )
        self._resources = dict(resources or {})
        self._given = cluster if cluster is not None else client
        self._given_client = client
        self._resource_timeout: float | None = timeout
        self._memory_limit = checked_memory_limit(memory_limit)
        self._cluster: DaskCluster | None = None
        self._dask_client: DaskClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._scratch: Scratch | None = None

    @property
    def dashboard_link(self) -> str | None:
        """Address of Dask's dashboard; None if there is none, or before the start."""
        return self._cluster.dashboard_link if self._cluster is not None else None

    def get_statistics(self) -> dict[str, Any]:
        """Describe the cluster.

        Returns:
            `scheduler` and `dashboard` (addresses), `workers`, `threads` and `memory_bytes` (last
            known values, at most a few seconds old), and `active_tasks`. Empty before the start.
        """
        if self._cluster is None:
            return {}
        return {**self._cluster.statistics(), "active_tasks": len(self._works)}

    @property
    def _client(self) -> Any:
        """The given client, or else the backend's own; None unless the backend is running."""
        if self._cluster is None:
            return None
        return self._cluster.client if self._given_client is None else self._given_client

    async def gather(self, futures: Any) -> Any:
        """Fetch results that were kept on the cluster.

        Args:
            futures: A `distributed.Future` of this backend, or lists and dicts of them.

        Returns:
            The same structure, with every future replaced by its result.

        Raises:
            BackendError: The backend is not running.
        """
        return await service_loop().run(self._gather(futures))

    async def _gather(self, futures: Any) -> Any:
        if self._cluster is None:
            raise BackendError(
                self.name, "it is not running; results kept on its cluster end with its shutdown"
            )
        return await self._cluster.client.gather(futures)

    # -- start and stop -------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the cluster, or start one, and install the plugin on its workers."""
        from rhapsody.backends.dask.client import DaskClient
        from rhapsody.backends.dask.cluster import DaskCluster

        cluster = await DaskCluster.open(self.name, self._resources, self._given)
        self._scratch = Scratch("dask") if cluster.is_own else None
        marks = self._scratch.path if self._scratch else None
        client = DaskClient(cluster.client, self.name, self, marks, self._memory_limit)
        try:
            await client.open()
        except BaseException as error:
            await client.close()
            await cluster.close()
            self._remove_scratch()
            if not isinstance(error, Exception):
                raise
            raise BackendError(
                self.name,
                f"its workers could not be set up: {type(error).__name__}: {error}; install the "
                "same version of rhapsody on scheduler and workers",
            ) from error
        self._cluster, self._dask_client = cluster, client
        self._watcher = asyncio.create_task(self._watch(cluster, client))

    async def _watch(self, cluster: DaskCluster, client: DaskClient) -> None:
        await cluster.lost()
        error = self._lost_error()
        logger.error("%s", error)
        await client.fail(error)
        await cluster.fail(error)

    async def stop(self) -> None:
        """Disconnect, and close the cluster if it is the backend's own."""
        cluster, client = self._cluster, self._dask_client
        self._cluster = self._dask_client = None
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        try:
            if client is not None:
                await client.close()
        finally:
            if cluster is not None:
                await cluster.close()
            self._remove_scratch()

    def _remove_scratch(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            scratch.remove()

    def kill_children(self) -> None:
        """Kill the worker processes of the backend's own cluster."""
        if self._cluster is not None:
            self._cluster.kill_workers()
        self._remove_scratch()

    # -- tasks ----------------------------------------------------------------------------------

    def check(self, work: Work) -> None:
        """Refuse a task with an option that is unknown or has a wrong value."""
        super().check(work)
        if not _is_placed(work):
            return
        refuse_unknown(work, OPTIONS, self.name)
        if work.kind == EXECUTABLE and work.options.get("keep_on_cluster"):
            raise UnsupportedTaskError(work.uid, "'keep_on_cluster' is an option of functions only")
        try:
            Placement.of(work)
        except ValueError as error:
            raise UnsupportedTaskError(work.uid, str(error)) from error
        key = work.options.get("key")
        if key and not is_sendable(str(key)):
            raise UnsupportedTaskError(
                work.uid, f"'key' must be text that UTF-8 can encode, got {key!r}"
            )

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run one task on the cluster."""
        cluster = self._cluster
        if cluster is None or cluster.is_lost:
            raise self._lost_error()
        if not _is_placed(work):
            return await self._run(work)
        shortage = await cluster.shortage(work)
        if shortage is None:
            return await self._run(work)
        timeout = self._timeout_for_resources(cluster)
        if not timeout:
            return _shortage_fields(work, shortage)
        return await self._run_within(work, cluster, timeout)

    def _timeout_for_resources(self, cluster: DaskCluster) -> float:
        from rhapsody.backends.dask.cluster import GROWTH_SECONDS

        if self._resource_timeout is not None:
            return self._resource_timeout
        return GROWTH_SECONDS if cluster.can_grow else 0.0

    async def _run_within(self, work: Work, cluster: DaskCluster, timeout: float) -> dict[str, Any]:
        """Run a task if a worker with its resources joins the cluster in time."""
        # Submitted at once, since an adaptive cluster grows by the tasks that are waiting.
        run = asyncio.ensure_future(self._run(work))
        try:
            await asyncio.wait([run], timeout=timeout)
            shortage = None if run.done() else await cluster.shortage(work)
            if shortage is None:
                return await run
            return _shortage_fields(work, shortage)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def _run(self, work: Work) -> dict[str, Any]:
        from rhapsody.backends.dask.remote_call import DataOutOfReachError

        client = self._dask_client
        assert client is not None
        deaths = 0
        while True:
            try:
                return await self._run_once(work, client)
            except DataOutOfReachError as error:
                client.on_out_of_reach(error)
            except _WorkersDied as error:
                # Dask counts the deaths of all workers that had the task, also of those that had
                # not begun to run it.
                allowed = error.killed.allowed_failures
                deaths = allowed + 1 if error.deaths is None else deaths + error.deaths
                if deaths > allowed:
                    raise _worker_died(work.uid, error.killed, deaths) from error.killed

    async def _run_once(self, work: Work, client: DaskClient) -> dict[str, Any]:
        submission = client.submit(work)
        try:
            future = await submission
            fields = await self._result_fields(work, future, client)
        except asyncio.CancelledError:
            if submission.done() and not submission.cancelled():
                await client.cancel(work, submission.result())
            raise
        except BaseException:
            if not submission.exception():
                client.forget(work, submission.result())
            raise
        client.forget(work, future)
        return fields

    async def _result_fields(self, work: Work, future: Any, client: DaskClient) -> dict[str, Any]:
        from distributed import KilledWorker

        from rhapsody.backends.dask.client import LOST
        from rhapsody.backends.dask.failures import FailedExecutable, FailedFunction

        while True:
            error = await future.exception()
            if isinstance(error, FailedExecutable):
                return error.fields
            if isinstance(error, FailedFunction):
                raise load_error(error.outcome)
            if isinstance(error, KilledWorker):
                raise _WorkersDied(error, await client.deaths(future, _address(error)))
            if error is not None:
                raise error.with_traceback(await future.traceback())
            if future.status == "cancelled":
                raise self._cancelled_error(work.uid)
            if work.options.get("keep_on_cluster"):
                return {"return_value": future}
            if client.is_kept(future):
                fetch = functools.partial(self._fetch_kept, work.uid, future)
                return {"return_value": KeptResult(future, fetch)}
            try:
                value = await client.fetch(work.uid, future)
            except (BackendError, TaskExecutionError):
                raise
            except Exception as error:
                raise TaskExecutionError(
                    work.uid, f"its result could not be fetched: {error}"
                ) from error
            if value is not LOST:
                return value if work.kind == EXECUTABLE else {"return_value": value}

    async def _fetch_kept(self, uid: str, future: Any) -> Any:
        """Return a result that has stayed on the cluster; called on any loop."""
        return await service_loop().run(self._fetch(uid, future))

    async def _fetch(self, uid: str, future: Any) -> Any:
        from rhapsody.backends.dask.client import LOST

        client = self._dask_client
        while client is not None:
            error = await future.exception()  # Dask runs a task again whose worker has died
            if error is not None:
                raise TaskExecutionError(
                    uid, f"its result was lost with its worker, and it failed again: {error!r}"
                ) from error
            if future.status == "cancelled":
                break
            value = await client.fetch(uid, future)
            if value is not LOST:
                return value
        raise self._cancelled_error(uid)

    def _cancelled_error(self, uid: str) -> Exception:
        if self._cluster is None or self._cluster.is_lost:
            return self._lost_error()
        return TaskExecutionError(
            uid,
            "it was cancelled on the cluster by another client, or by a restart of the workers",
        )

    def _lost_error(self) -> BackendError:
        loss = self._cluster.loss if self._cluster is not None else "it was shut down"
        return BackendError(
            self.name,
            f"{loss}. Its tasks have failed; shut the backend down and use it again to reconnect",
        )


def _is_placed(work: Work) -> bool:
    """Return whether a task has options, resources or a priority."""
    task = work.task
    return bool(work.options or task.get("priority") or task.get("resources") is not None)


def _shortage_fields(work: Work, shortage: ResourceError) -> dict[str, Any]:
    fields: dict[str, Any] = {"exception": shortage, "stderr": str(shortage)}
    return {**fields, "stdout": "", "exit_code": 1} if work.kind == EXECUTABLE else fields


class _WorkersDied(Exception):
    """Dask gave a task up because workers died that had it.

    Args:
        killed: Dask's error.
        deaths: How many of the workers were running the task; None if that is unknown.
    """

    def __init__(self, killed: KilledWorker, deaths: int | None) -> None:
        super().__init__(killed)
        self.killed = killed
        self.deaths = deaths


def _address(error: KilledWorker) -> str:
    return str(getattr(error.last_worker, "address", error.last_worker))


def _worker_died(uid: str, error: KilledWorker, deaths: int) -> WorkerDied:
    return WorkerDied(
        uid,
        f"{deaths} worker processes died while they ran it, the last at {_address(error)}, and "
        "Dask gave up (distributed.scheduler.allowed-failures). Usual causes: it needs more memory "
        "than a worker has, or it crashes the interpreter. See the workers' logs",
    )
