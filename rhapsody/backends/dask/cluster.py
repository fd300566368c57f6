"""The Dask cluster of a backend, started or given, and the client that is connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future

from rhapsody.backends.core.work import Work
from rhapsody.backends.dask.batches import BatchQueue
from rhapsody.backends.dask.local_cluster import (
    LOOPBACK,
    close_local_cluster,
    kill_workers,
    start_local_cluster,
)
from rhapsody.backends.dask.placement import Placement
from rhapsody.backends.dask.worker_monitor import WorkerMonitor
from rhapsody.errors import BackendError, ConfigurationError, ResourceError

__all__ = ["GROWTH_SECONDS", "DaskCluster", "scheduler_of"]

GROWTH_SECONDS = 300.0
"""How long a task waits for resources on a growing cluster, unless `resource_timeout` is set."""


def scheduler_of(given: Any) -> tuple[str, Any]:
    """Return address and security of the scheduler behind a cluster, a client or an address.

    Raises:
        ConfigurationError: The object is none of these, or has not been started.
    """
    if isinstance(given, str):
        return given, None
    if isinstance(given, Client):
        scheduler = getattr(given, "scheduler", None)
        address = scheduler.address if scheduler is not None else None
    else:
        try:
            address = given.scheduler_address
        except AttributeError as error:
            raise ConfigurationError(
                "cluster must be a cluster of dask.distributed or the address of a scheduler, and "
                f"client a distributed.Client, got {given!r}"
            ) from error
        except Exception:  # the cluster has not been started
            address = None
    if not address or address == "<Not Connected>":
        raise ConfigurationError(
            f"the given {type(given).__name__} is not connected to a scheduler; an asynchronous "
            "one must be awaited first"
        )
    return address, getattr(given, "security", None)


class DaskCluster:
    """A Dask cluster with a connected client, on the service loop.

    Args:
        client: An asynchronous client of the running loop.
        cluster: The cluster object, or None if only the scheduler's address is known.
        is_own: Whether the cluster runs on this machine and is closed with this object.
    """

    def __init__(self, client: Client, cluster: Any, is_own: bool) -> None:
        self.client = client
        self.address: str = client.scheduler.address
        self._cluster = cluster
        self.is_own = is_own
        self._monitor = asyncio.ensure_future(WorkerMonitor(cluster).run()) if is_own else None
        self._queries: BatchQueue[None, dict[str, Any]] = BatchQueue(self._query_workers, 10_000)

    @classmethod
    async def open(
        cls, backend_name: str, options: Mapping[str, Any], given: Any = None
    ) -> DaskCluster:
        """Connect to a given cluster, client or address; start a `LocalCluster` if None is given.

        Raises:
            BackendError: The scheduler cannot be reached, or the cluster did not start.
        """
        cluster = client = None
        try:
            if given is None:
                cluster = await start_local_cluster(options)
                address, security = scheduler_of(cluster)
            else:
                cluster = given.cluster if isinstance(given, Client) else given
                address, security = scheduler_of(given)
            cluster = None if isinstance(cluster, str) else cluster
            client = Client(
                address,
                asynchronous=True,
                security=security,
                set_as_default=False,
                direct_to_workers=_direct_to_workers(given),
                name="rhapsody",
            )
            await client
            client.cluster = cluster  # knows the address of the dashboard
        except BaseException as error:
            if client is not None:
                await client.close()
            if cluster is not None and given is None:
                await close_local_cluster(cluster)
            if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
                raise
            what = (
                "its LocalCluster did not start"
                if given is None
                else f"it could not connect to {given!r}"
            )
            raise BackendError(
                backend_name, f"{what}: {type(error).__name__}: {error}{_advice(error)}"
            ) from error
        return cls(client, cluster, is_own=given is None)

    async def close(self) -> None:
        """Close the client, and the cluster if it is owned."""
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.gather(self._monitor, return_exceptions=True)
        await self.client.close()
        if self.is_own:
            await close_local_cluster(self._cluster)

    def kill_workers(self) -> None:
        """Kill the worker processes of an owned cluster; from any thread."""
        if self.is_own:
            kill_workers(self._cluster)

    @property
    def dashboard_link(self) -> str | None:
        """Address of the dashboard; None if there is none."""
        if self.is_own and "dashboard" not in self._cluster.scheduler.services:
            return None
        try:
            link: str | None = self.client.dashboard_link or None
        except KeyError:  # the scheduler has none
            return None
        if link and self.is_own and self.address.startswith("inproc://"):
            return link.replace(str(urlsplit(link).hostname), LOOPBACK, 1)
        return link

    @property
    def is_lost(self) -> bool:
        """Whether the cluster can run no more tasks."""
        return bool(self.client.status != "running") or self._has_no_workers

    @property
    def _has_no_workers(self) -> bool:
        return self._monitor is not None and self._monitor.done()

    @property
    def loss(self) -> str:
        """The reason why the cluster can run no more tasks."""
        if self._monitor is not None and self._has_no_workers and not self._monitor.cancelled():
            return self._monitor.result()
        return f"the connection to the Dask scheduler at {self.address} was lost"

    async def lost(self) -> None:
        """Wait until the cluster can run no more tasks."""
        # All futures are cancelled when the connection is lost, and nothing else ends this one.
        connection = Future(f"watch-{self.client.id}", self.client).exception()
        ends = [asyncio.ensure_future(connection)]
        if self._monitor is not None:
            ends.append(self._monitor)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ends[0].cancel()

    async def fail(self, error: Exception) -> None:
        """Raise an error to all callers that wait for the scheduler, and cancel all futures."""
        await self._queries.close(error)
        await self.client.close()

    @property
    def can_grow(self) -> bool:
        """Whether more workers may come: the cluster is adaptive, or jobs have not yet started.

        False if only the scheduler's address is known.
        """
        if getattr(self._cluster, "_adaptive", None) is not None:
            return True
        return len(getattr(self._cluster, "plan", ())) > len(getattr(self._cluster, "observed", ()))

    def statistics(self) -> dict[str, Any]:
        """Return the addresses, and the last known numbers of workers, threads and bytes."""
        info = self.client.scheduler_info()
        workers = info.get("workers", {})
        return {
            "scheduler": self.address,
            "dashboard": self.dashboard_link,
            "workers": info.get("n_workers", len(workers)),
            "threads": info.get("total_threads", sum(w["nthreads"] for w in workers.values())),
            "memory_bytes": info.get(
                "total_memory", sum(w["memory_limit"] for w in workers.values())
            ),
        }

    # -- resources ------------------------------------------------------------------------------

    async def shortage(self, work: Work) -> ResourceError | None:
        """Return an error that says what no worker offers; None if a worker can run the task."""
        placement = Placement.of(work)
        if not placement.is_restricted:
            return None
        return placement.shortage(work.uid, await self._queries.put(None))

    async def _query_workers(self, queries: list[None]) -> list[dict[str, Any]]:
        workers: dict[str, Any] = (await self.client.scheduler.identity())["workers"]
        return [workers] * len(queries)


def _direct_to_workers(given: Any) -> bool | None:
    # Every worker on this machine can be reached. Elsewhere a firewall may be in between, so the
    # scheduler passes results on, unless the caller's client says otherwise.
    if given is None:
        return True
    return given.direct_to_workers if isinstance(given, Client) else None


def _advice(error: BaseException) -> str:
    if "Nanny" not in str(error) and "worker process" not in str(error):
        return ""
    return (
        "; its worker processes do not start: a script that uses them needs its entry point under "
        "`if __name__ == '__main__':`"
    )
