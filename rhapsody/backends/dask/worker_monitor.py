"""Monitor that replaces the workers of a local Dask cluster when they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Any

from rhapsody.backends.dask.local_cluster import start_workers

__all__ = ["WorkerMonitor"]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Time between two checks."""

DEAD_CHECKS = 3
"""Number of checks in a row at which a worker must be dead, as its nanny may be restarting it."""

CLOSE_SECONDS = 1.0
"""How long the nanny of a dead worker may take to close."""

ATTEMPTS = 5
"""Number of failed starts in a row after which a cluster without workers is given up."""

BACKOFF_SECONDS = 0.5
"""Pause after the first failed start; it doubles with each further one."""

MAX_BACKOFF_SECONDS = 30.0
"""Longest pause between two starts."""


class WorkerMonitor:
    """Replaces dead workers of a `LocalCluster`.

    A nanny restarts its worker, but gives up if the worker is killed while it starts. Dask then
    keeps all tasks waiting, without a message.

    Args:
        cluster: A running `LocalCluster` of the running loop.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._dead_checks: Counter[Any] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self._failed_starts = 0

    async def run(self) -> str:
        """Check the workers until none is left and none can be started; return the reason.

        Dask has no event for a nanny that gives up, so the workers are polled.
        """
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if not self._remove_dead():
                continue
            try:
                await start_workers(self._cluster)
                self._failed_starts = 0
            except Exception as error:
                self._failed_starts += 1
                logger.warning("a worker of the Dask cluster could not be started: %r", error)
                if self._failed_starts >= ATTEMPTS and not self._has_worker():
                    cause = error.__cause__ or error
                    return (
                        f"all workers of its cluster have ended, and {ATTEMPTS} attempts in a row "
                        f"to start one failed: {type(cause).__name__}: {cause}"
                    )
                pause = BACKOFF_SECONDS * 2 ** (self._failed_starts - 1)
                await asyncio.sleep(min(pause, MAX_BACKOFF_SECONDS))

    def _remove_dead(self) -> bool:
        """Remove dead workers from the cluster; return whether workers are missing."""
        workers = self._cluster.workers
        for name, worker in list(workers.items()):
            self._dead_checks[name] = self._dead_checks[name] + 1 if _is_dead(worker) else 0
            if _is_closed(worker) or self._dead_checks[name] >= DEAD_CHECKS:
                logger.warning("worker %s of the Dask cluster has ended and is replaced", name)
                del workers[name], self._dead_checks[name]
                self._closing.add(closing := asyncio.ensure_future(_close(worker)))
                closing.add_done_callback(self._closing.discard)
        return bool(self._cluster.worker_spec.keys() - workers.keys())

    def _has_worker(self) -> bool:
        return any(not _is_dead(worker) for worker in self._cluster.workers.values())


async def _close(worker: Any) -> None:
    with contextlib.suppress(Exception):
        await worker.close(timeout=CLOSE_SECONDS)


def _is_closed(worker: Any) -> bool:
    return worker.status.name in ("closed", "failed")


def _is_dead(worker: Any) -> bool:
    is_alive = getattr(worker, "is_alive", None)  # of a nanny; a worker in threads has none
    return _is_closed(worker) or (is_alive is not None and not is_alive())
