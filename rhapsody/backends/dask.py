"""Tasks on a Dask cluster: one on this machine, or any that `dask.distributed` can reach."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import (
    BackendError,
    ConfigurationError,
    MissingExtraError,
    ResourceError,
    TaskExecutionError,
    UnsupportedTaskError,
    WorkerDied,
)
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.dask_placement import Placement
from rhapsody.backends.executables import OPTIONS as EXECUTABLE_OPTIONS
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.service import service_loop
from rhapsody.backends.work import Work, refuse_unknown

if TYPE_CHECKING:
    from rhapsody.backends.dask_cluster import Connection
    from rhapsody.backends.dask_exchange import Exchange

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
"""Keys of `task_backend_specific_kwargs` that this backend knows."""


class DaskExecutionBackend(BaseBackend):
    """Runs functions and executables on the workers of a Dask cluster.

    Without `cluster` and `client` it starts a `LocalCluster`, which it closes at its shutdown. One
    that is given is the caller's, and is left running.

    Options of a task, in `task_backend_specific_kwargs`: `resources`, `workers`,
    `allow_other_workers`, `priority`, `retries`, `pure` and `key` are those of `Client.submit`;
    every task has a key of its own unless `pure` or `key` says otherwise. `keep_on_cluster=True`
    leaves a function's result where it is: `return_value` is then a `distributed.Future`, which
    later tasks of this backend take as an argument; `gather` brings it here. Executables take
    `cwd`, `env` and `shell`, and every task `timeout`.

    A cancelled executable is ended with its process group, an async function is cancelled at its
    next await, and a sync function that runs already is reported CANCELED, runs on in its worker
    thread, and its result is dropped. `rhapsody` has to be installed on scheduler and workers.

    Args:
        resources: Options of `LocalCluster`, such as `{"n_workers": 4, "threads_per_worker": 1}`.
        cluster: A running cluster (`LocalCluster`, `SLURMCluster`, `KubeCluster`, ...), sync or
            async, or the address of a scheduler.
        client: A connected `distributed.Client`, sync or async.
        name: Name of the backend.
        resource_timeout: Seconds that a task waits for workers that have what it asks for. None is
            0, or 300 while the cluster is still growing (adaptive, or jobs not yet started).

    Raises:
        MissingExtraError: The package `distributed` is not installed.
        ConfigurationError: More than one of `resources`, `cluster` and `client` is given, or one
            of them is not what it has to be.
    """

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        cluster: Any = None,
        client: Any = None,
        name: str = "dask",
        *,
        resource_timeout: float | None = None,
    ) -> None:
        super().__init__(name)
        if importlib.util.find_spec("distributed") is None:
            raise MissingExtraError(type(self).__name__, "distributed", "dask")
        if sum(given is not None for given in (resources, cluster, client)) > 1:
            raise ConfigurationError(
                "resources configure a cluster of the backend's own, cluster and client name one "
                "that is there: give one of the three"
            )
        if resources is not None and not isinstance(resources, Mapping):
            raise ConfigurationError(f"resources must be a dict, not {resources!r}")
        if refused := {"asynchronous", "loop"} & set(resources or ()):
            raise ConfigurationError(f"resources cannot set {', '.join(sorted(refused))}")
        self._resources = dict(resources or {})
        self._given = cluster if cluster is not None else client
        self._lent_client = client
        self._resource_timeout = resource_timeout
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def dashboard_link(self) -> str | None:
        """Address of Dask's dashboard; None before the start, or where there is none."""
        return self._connection.dashboard_link if self._connection is not None else None

    def get_statistics(self) -> dict[str, Any]:
        """Describe the cluster.

        Returns:
            `scheduler` and `dashboard` (addresses), `workers`, `threads` and `memory_bytes` as
            last heard of, a few seconds ago at most, and `active_tasks`; empty before the start.
        """
        if self._connection is None:
            return {}
        return {**self._connection.statistics(), "active_tasks": len(self._works)}

    @property
    def _client(self) -> Any:
        """The caller's client where one was given, else the backend's; None while it is down."""
        if self._connection is None:
            return None
        return self._connection.client if self._lent_client is None else self._lent_client

    async def gather(self, futures: Any) -> Any:
        """Bring results here that were kept on the cluster.

        Args:
            futures: A `distributed.Future` of this backend, or lists and dicts of them.

        Returns:
            The same, with results in the places of futures.

        Raises:
            BackendError: The backend does not run.
        """
        return await service_loop().run(self._gather(futures))

    async def _gather(self, futures: Any) -> Any:
        if self._connection is None:
            raise BackendError(self.name, "it does not run, and what it kept went with it")
        return await self._connection.client.gather(futures)

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the cluster, or start one; set up the workers."""
        from rhapsody.backends.dask_cluster import Connection
        from rhapsody.backends.dask_exchange import Exchange

        connection = await Connection.open(self.name, self._resources, self._given)
        exchange = Exchange(connection.client, self.name, self.running)
        try:
            await exchange.open()
        except BaseException as error:
            await connection.close()
            if not isinstance(error, Exception):
                raise
            raise BackendError(
                self.name,
                f"its workers could not be set up: {type(error).__name__}: {error}; the same "
                "version of rhapsody has to be installed on scheduler and workers",
            ) from error
        self._connection, self._exchange = connection, exchange
        self._watcher = asyncio.create_task(self._watch(connection, exchange))

    async def _watch(self, connection: Connection, exchange: Exchange) -> None:
        await connection.lost()
        error = self._lost()
        logger.error("%s", error)
        await exchange.give_up(error)
        await connection.give_up(error)

    async def stop(self) -> None:
        """Disconnect; close the cluster, if it is the backend's own."""
        connection, exchange = self._connection, self._exchange
        self._connection = self._exchange = None
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        try:
            if exchange is not None:
                await exchange.close()
        finally:
            if connection is not None:
                await connection.close()

    def abandon(self) -> None:
        """Kill the workers of the backend's own cluster."""
        if self._connection is not None:
            self._connection.kill()

    # -- tasks ----------------------------------------------------------------------------------

    def check(self, work: Work) -> None:
        """Refuse options that Dask does not have, or that are not what they have to be."""
        super().check(work)
        if not work.options:
            return
        refuse_unknown(work, OPTIONS, self.name)
        if work.kind == EXECUTABLE and work.options.get("keep_on_cluster"):
            raise UnsupportedTaskError(work.uid, "'keep_on_cluster' is for functions")
        try:
            Placement.of(work.options)
        except (TypeError, ValueError) as error:
            raise UnsupportedTaskError(work.uid, str(error)) from error

    async def execute(self, work: Work) -> dict[str, Any]:
        """Run one task on the cluster."""
        connection = self._connection
        if connection is None or connection.is_lost:
            raise self._lost()
        if not work.options:
            return await self._run(work)
        lacking = await connection.lacking(work)
        if lacking is None:
            return await self._run(work)
        patience = self._patience(connection)
        if not patience:
            return _not_placed(work, lacking)
        return await self._run_when_possible(work, connection, patience)

    def _patience(self, connection: Connection) -> float:
        from rhapsody.backends.dask_cluster import GROWTH_SECONDS

        if self._resource_timeout is not None:
            return self._resource_timeout
        return GROWTH_SECONDS if connection.can_grow else 0.0

    async def _run_when_possible(
        self, work: Work, connection: Connection, patience: float
    ) -> dict[str, Any]:
        # It is submitted all the same: an adaptive cluster grows by what it is asked for.
        run = asyncio.ensure_future(self._run(work))
        try:
            await asyncio.wait([run], timeout=patience)
            lacking = None if run.done() else await connection.lacking(work)
            if lacking is None:
                return await run
            return _not_placed(work, lacking)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def _run(self, work: Work) -> dict[str, Any]:
        exchange = self._exchange
        assert exchange is not None
        sent = exchange.send(work)
        try:
            future = await sent
            fields = await self._outcome(work, future, exchange)
        except asyncio.CancelledError:
            if sent.done() and not sent.cancelled():
                await exchange.end(work, sent.result())
            raise
        except BaseException:
            if not sent.exception():
                exchange.done(work, sent.result())
            raise
        exchange.done(work, future)
        return fields

    async def _outcome(self, work: Work, future: Any, exchange: Exchange) -> dict[str, Any]:
        from rhapsody.backends.dask_calls import FailedExecutable
        from rhapsody.backends.dask_exchange import LOST

        while True:
            error = await future.exception()
            if isinstance(error, FailedExecutable):
                return error.fields
            if error is not None:
                raise _explained(work.uid, error).with_traceback(await future.traceback())
            if future.status == "cancelled":
                raise self._why_cancelled(work)
            if work.options.get("keep_on_cluster"):
                return {"return_value": future}
            try:
                value = await exchange.fetch(future)
            except BackendError:
                raise
            except Exception as error:
                raise TaskExecutionError(
                    work.uid, f"its result could not be brought here: {error}"
                ) from error
            if value is not LOST:
                return value if work.kind == EXECUTABLE else {"return_value": value}

    def _why_cancelled(self, work: Work) -> Exception:
        if self._connection is None or self._connection.is_lost:
            return self._lost()
        return TaskExecutionError(
            work.uid,
            "it was cancelled on the cluster, and not by this backend: by another client, or by "
            "a restart of the workers",
        )

    def _lost(self) -> BackendError:
        address = self._connection.address if self._connection is not None else "its scheduler"
        return BackendError(
            self.name,
            f"the connection to the Dask scheduler at {address} was lost; tasks that were there "
            "have failed. Shut the backend down and use it again to connect anew",
        )


def _not_placed(work: Work, lacking: ResourceError) -> dict[str, Any]:
    fields: dict[str, Any] = {"exception": lacking, "stderr": str(lacking)}
    return {**fields, "stdout": "", "exit_code": 1} if work.kind == EXECUTABLE else fields


def _explained(uid: str, error: BaseException) -> BaseException:
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker):
        return error
    worker = getattr(error.last_worker, "address", error.last_worker)
    explained = WorkerDied(
        uid,
        f"{error.allowed_failures + 1} worker processes in a row died while they ran it, the last "
        f"at {worker}, and Dask tries no more (distributed.scheduler.allowed-failures). Usual "
        "causes: it needs more memory than a worker has, or it crashes the interpreter; the "
        "workers' logs say more",
    )
    explained.__cause__ = error
    return explained
