"""Local Dask cluster of a backend: started, protected and closed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from dask.system import CPU_COUNT
from distributed import LocalCluster, Nanny, Security, Worker
from distributed.deploy.utils import nprocesses_nthreads

from rhapsody.errors import ConfigurationError
from rhapsody.processes import signal_group
from rhapsody.suggest import did_you_mean

__all__ = [
    "LOOPBACK",
    "close_local_cluster",
    "kill_workers",
    "start_local_cluster",
    "start_workers",
]

LOOPBACK = "127.0.0.1"

NO_WORKER_PAGES: dict[str, Any] = {"distributed.worker.http.routes": []}
"""Configuration with which the HTTP servers of workers serve nothing."""

ABORT_SECONDS = 5.0
"""How long to wait for the end of a cancelled start."""

CLOSE_SECONDS = 1.0
"""How long a worker of the backend's own cluster may take to close before it is killed."""


async def start_local_cluster(options: Mapping[str, Any]) -> Any:
    """Start a `LocalCluster` on the running loop that only this program can use.

    It listens on loopback only, with TLS and its own certificate, because any local user can
    reach a port and run code through a Dask scheduler. It serves HTTP only if the options say so.

    Args:
        options: Arguments of `LocalCluster`.

    Raises:
        ConfigurationError: `LocalCluster` does not accept these options.
    """
    _refuse_misspelled(options)
    serves_http = bool({"dashboard_address", "worker_dashboard_address"} & options.keys())
    defaults: dict[str, Any] = {"dashboard_address": f"{LOOPBACK}:0"}
    if options.get("processes", True):
        defaults["host"] = LOOPBACK
        if not {"security", "protocol"} & options.keys():
            defaults["security"] = await asyncio.to_thread(Security.temporary)
        if not serves_http:
            options = {**options, "config": {**NO_WORKER_PAGES, **(options.get("config") or {})}}
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A starting worker imports the script, which starts a cluster again. Many versions of
            # Dask lose the error that multiprocessing raises then, and wait for ever.
            raise RuntimeError("a worker process of a local Dask cluster cannot start another one")
        _check_pipes()
    else:  # threads take no host, and would serve their metrics on all interfaces
        defaults["worker_dashboard_address"] = f"{LOOPBACK}:0"
    defaults["resources"] = {"CPU": _threads_of_worker(options)}
    cluster = None
    try:
        cluster = LocalCluster(asynchronous=True, **{**defaults, **options})
        await start_workers(cluster)
        if not serves_http:
            _stop_http(cluster)
        return cluster
    except BaseException as error:
        if cluster is not None:
            await close_local_cluster(cluster)
        if isinstance(error, TypeError) or isinstance(error.__cause__, TypeError):
            raise ConfigurationError(
                f"resources must be options of Dask's LocalCluster, which rejected them: {error}"
            ) from error
        raise


def _refuse_misspelled(options: Mapping[str, Any]) -> None:
    """Refuse a name that is close to an option. Other names may be options of a worker's class."""
    classes = (LocalCluster, Nanny, Worker)
    known = {name for one in classes for name in inspect.signature(one).parameters}
    for name in options.keys() - known:
        if hint := did_you_mean(name, known, 0.8):
            raise ConfigurationError(f"resources has the unknown option '{name}'; {hint}")


def _threads_of_worker(options: Mapping[str, Any]) -> int:
    """Return the number of threads that `LocalCluster` gives each worker."""
    workers, threads = options.get("n_workers"), options.get("threads_per_worker")
    if threads:
        return int(threads)
    if workers:
        return int(max(1, CPU_COUNT // int(workers)))
    in_processes = options.get("processes", True)
    threads = nprocesses_nthreads(CPU_COUNT)[1] if in_processes else CPU_COUNT
    return int(threads)


def _check_pipes() -> None:
    """Refuse a process in which Dask cannot talk to worker processes.

    Once a Dragon backend has run, Dragon 0.15 replaces `multiprocessing.Pipe` by a function that
    fails outside of its own start method.
    """
    try:
        for end in multiprocessing.get_context("spawn").Pipe(duplex=False):
            end.close()
    except TypeError as error:
        raise RuntimeError(
            "multiprocessing.Pipe does not work in this program, because the Dragon runtime has "
            "replaced it. Pass {'processes': False} for workers in threads, or connect to a "
            "cluster of another program"
        ) from error


async def start_workers(cluster: Any) -> None:
    """Start all missing workers of a `LocalCluster`; when cancelled, kill its workers.

    Dask itself leaves the starting workers behind and cannot close the cluster then, which it tries
    again for 10 s when the interpreter exits.
    """
    start = asyncio.ensure_future(cluster)
    try:
        await asyncio.shield(start)
    except asyncio.CancelledError:
        deadline = time.monotonic() + ABORT_SECONDS
        while not start.done() and time.monotonic() < deadline:
            kill_workers(cluster)  # repeatedly, since a process may start after the first time
            await asyncio.wait([start], timeout=0.05)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        raise


def kill_workers(cluster: Any) -> None:
    """Kill the worker processes of a `LocalCluster`, those that are starting included."""
    # A worker is in `workers` only after its start.
    for worker in {*cluster.workers.values(), *getattr(cluster, "_created", ())}:
        if isinstance(worker, Nanny) and worker.pid:
            signal_group(worker.pid, signal.SIGKILL)  # also the processes that its tasks started
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)


def _stop_http(cluster: Any) -> None:
    """Close the HTTP servers of a cluster that run in this process: they have no access control."""
    workers = [worker for worker in cluster.workers.values() if not isinstance(worker, Nanny)]
    for server in (cluster.scheduler, *workers):
        server.http_server.stop()
        server.services.pop("dashboard", None)


async def close_local_cluster(cluster: Any) -> None:
    """Close a `LocalCluster`, even if its workers run calls that cannot be interrupted."""
    closing = [
        worker.close(timeout=CLOSE_SECONDS)
        if isinstance(worker, Nanny)
        # A worker in threads cannot be killed, and would wait for its running calls.
        else worker.close(timeout=CLOSE_SECONDS, executor_wait=False)
        for worker in cluster.workers.values()
    ]
    nanny_logger = logging.getLogger("distributed.nanny")
    nanny_logger.addFilter(_is_not_about_kill)
    try:
        await asyncio.gather(*closing, return_exceptions=True)
    finally:
        nanny_logger.removeFilter(_is_not_about_kill)
    await cluster.close()


def _is_not_about_kill(record: logging.LogRecord) -> bool:
    # A worker that does not close in time is killed on purpose, and no work is lost by it.
    return not record.getMessage().startswith("Worker process still alive after")
