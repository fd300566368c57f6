"""The Dask cluster that a backend uses: its own or the caller's, and the client that reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future, LocalCluster, Nanny

from rhapsody.api.errors import BackendError, ConfigurationError, ResourceError
from rhapsody.backends.batches import Batches
from rhapsody.backends.dask_placement import Placement
from rhapsody.backends.work import Work

__all__ = ["Connection", "own_cluster", "scheduler_of"]

LOOPBACK = "127.0.0.1"

CLOSE_SECONDS = 1.0
"""How long a worker of our own may take to end what cannot be stopped, before it is killed."""

GROWTH_SECONDS = 300.0
"""How long a task waits for resources on a cluster that is still growing, where nothing is said."""


def scheduler_of(given: Any) -> tuple[str, Any]:
    """Return address and security of the scheduler behind a cluster, a client or an address.

    Raises:
        ConfigurationError: It is none of these, or has not been started.
    """
    if isinstance(given, str):
        return given, None
    if isinstance(given, Client):
        scheduler = getattr(given, "scheduler", None)
        address = scheduler.address if scheduler is not None else None
    elif hasattr(given, "scheduler_address"):
        try:
            address = given.scheduler_address
        except Exception:  # a cluster that is not up has none
            address = None
        if address == "<Not Connected>":
            address = None
    else:
        raise ConfigurationError(
            "cluster must be a cluster of dask.distributed or the address of a scheduler, and "
            f"client a distributed.Client, not {given!r}"
        )
    if not address:
        raise ConfigurationError(
            f"the {type(given).__name__} that was given is not connected to a scheduler; an "
            "asynchronous one has to be awaited first"
        )
    return address, getattr(given, "security", None)


async def own_cluster(options: Mapping[str, Any]) -> Any:
    """Start a `LocalCluster` on the running loop, reachable from this machine only.

    Args:
        options: Arguments of `LocalCluster`.

    Raises:
        ConfigurationError: `LocalCluster` does not take these options.
    """
    defaults = {"dashboard_address": f"{LOOPBACK}:0"}
    if options.get("processes", True):
        defaults["host"] = LOOPBACK
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A worker that is starting imports the script, and that makes a cluster again. What
            # multiprocessing says to that is lost in many versions of Dask, which then wait.
            raise RuntimeError("this is a worker process of such a cluster itself")
    else:  # threads have no host, and would serve their metrics to all the world
        defaults["worker_dashboard_address"] = f"{LOOPBACK}:0"
    cluster = None
    try:
        cluster = LocalCluster(asynchronous=True, **{**defaults, **options})
        return await cluster
    except BaseException as error:
        if cluster is not None:
            await close_cluster(cluster)
        if isinstance(error, TypeError) or isinstance(error.__cause__, TypeError):
            raise ConfigurationError(
                f"resources are options of dask's LocalCluster, and it refused them: {error}"
            ) from error
        raise


async def close_cluster(cluster: Any) -> None:
    """Close a cluster of our own, also where its workers are busy with what cannot be stopped."""
    closing = [
        worker.close(timeout=CLOSE_SECONDS)
        if isinstance(worker, Nanny)
        # In threads, what runs cannot be killed, and the worker would wait for it.
        else worker.close(timeout=CLOSE_SECONDS, executor_wait=False)
        for worker in cluster.workers.values()
    ]
    nannies = logging.getLogger("distributed.nanny")
    nannies.addFilter(_is_no_kill)
    try:
        await asyncio.gather(*closing, return_exceptions=True)
    finally:
        nannies.removeFilter(_is_no_kill)
    await cluster.close()


def _is_no_kill(record: logging.LogRecord) -> bool:
    # A worker that has not ended in time is killed. That is meant, and no work is lost by it.
    return not record.getMessage().startswith("Worker process still alive after")


class Connection:
    """A client of a scheduler, on the service loop, and what it can tell about the workers.

    Args:
        client: An asynchronous client of the running loop, which knows its cluster if there is an
            object of it.
        owned: Whether the cluster is closed with the connection.
    """

    def __init__(self, client: Any, owned: bool) -> None:
        self.client = client
        self.address: str = client.scheduler.address
        self._cluster = client.cluster
        self._owned = owned
        self._looks: Batches[None, dict[str, Any]] = Batches(self._look, 10_000)

    @classmethod
    async def open(
        cls, backend_name: str, options: Mapping[str, Any], given: Any = None
    ) -> Connection:
        """Connect to a given cluster, client or address; without one start a cluster.

        Raises:
            BackendError: There is no scheduler to connect to, or the cluster did not start.
        """
        cluster = client = None
        try:
            if given is None:
                cluster = await own_cluster(options)
                address, security = scheduler_of(cluster)
            else:
                cluster = given.cluster if isinstance(given, Client) else given
                address, security = scheduler_of(given)
            client = Client(
                address,
                asynchronous=True,
                security=security,
                set_as_default=False,
                direct_to_workers=_direct(given),
                name="rhapsody",
            )
            await client
            client.cluster = cluster if not isinstance(cluster, str) else None
        except BaseException as error:
            if client is not None:
                await client.close()
            if cluster is not None and given is None:
                await close_cluster(cluster)
            if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
                raise
            what = "its LocalCluster did not start" if given is None else f"no use of {given!r}"
            raise BackendError(
                backend_name, f"{what}: {type(error).__name__}: {error}{_advice(error)}"
            ) from error
        return cls(client, given is None)

    async def close(self) -> None:
        """Close the client, and the cluster where it is ours."""
        await self.client.close()
        if self._owned:
            await close_cluster(self._cluster)

    def kill(self) -> None:
        """Kill the workers of a cluster of our own, from any thread."""
        if self._owned:
            for worker in list(self._cluster.workers.values()):
                if isinstance(worker, Nanny) and worker.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)

    @property
    def dashboard_link(self) -> str | None:
        """Where the dashboard is; None where there is none."""
        try:
            link: str | None = self.client.dashboard_link
        except KeyError:  # a scheduler without one
            return None
        if link and self._owned and self.address.startswith("inproc://"):
            return link.replace(str(urlsplit(link).hostname), LOOPBACK, 1)
        return link

    @property
    def is_lost(self) -> bool:
        """Whether the scheduler has gone."""
        return bool(self.client.status != "running")

    async def lost(self) -> None:
        """Return when the scheduler has gone."""
        # All futures are cancelled then, and this one has no other end.
        await Future(f"watch-{self.client.id}", self.client).exception()

    async def give_up(self, error: Exception) -> None:
        """Let all who wait for an answer of the scheduler have an error."""
        await self._looks.close(error)

    @property
    def can_grow(self) -> bool:
        """Whether workers may still come by themselves: adaptive, or asked for and not yet there.

        Of a bare address nothing is known, and what is known is that workers are there.
        """
        cluster = self._cluster
        if getattr(cluster, "_adaptive", None) is not None:
            return True
        return len(getattr(cluster, "plan", ())) > len(getattr(cluster, "observed", ()))

    def statistics(self) -> dict[str, Any]:
        """Return address, dashboard, and workers, threads and memory as last heard of."""
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

    async def lacking(self, work: Work) -> ResourceError | None:
        """Say what no worker offers of that which a task asks for; None where one does."""
        placement = Placement.of(work.options)
        if not placement.is_choosy:
            return None
        return placement.lacking(work.uid, await self._looks.put(None))

    async def _look(self, askers: list[None]) -> list[dict[str, Any]]:
        workers: dict[str, Any] = (await self.client.scheduler.identity())["workers"]
        return [workers] * len(askers)


def _direct(given: Any) -> bool | None:
    # On this machine every worker can be reached; elsewhere there may be a firewall between,
    # and the scheduler passes results on unless the caller knows better.
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
