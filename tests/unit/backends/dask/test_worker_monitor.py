import asyncio
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("distributed")

from rhapsody.backends.dask import worker_monitor
from rhapsody.backends.dask.worker_monitor import WorkerMonitor
from tests.support.waiting import until

pytestmark = pytest.mark.dask


class FakeNanny:
    """A nanny whose worker lives until a test sets `alive`."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False
        self.status = SimpleNamespace(name="running")

    def is_alive(self) -> bool:
        return self.alive

    async def close(self, timeout: float) -> None:
        self.closed = True


class FakeCluster:
    """A cluster that starts missing workers when awaited, or fails to."""

    def __init__(self, size: int) -> None:
        self.worker_spec = dict.fromkeys(range(size))
        self.workers = {name: FakeNanny() for name in self.worker_spec}
        self.error: Exception | None = None
        self.starts = 0

    def __await__(self) -> Generator[Any, None, None]:
        return self._start().__await__()

    async def _start(self) -> None:
        self.starts += 1
        if self.error is not None:
            raise self.error
        for name in self.worker_spec:
            self.workers.setdefault(name, FakeNanny())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_monitor, "CHECK_SECONDS", 0)
    monkeypatch.setattr(worker_monitor, "BACKOFF_SECONDS", 0)


async def test_dead_worker_is_replaced_and_its_nanny_closed() -> None:
    cluster = FakeCluster(2)
    dead, other = cluster.workers.values()
    monitoring = asyncio.ensure_future(WorkerMonitor(cluster).run())
    dead.alive = False
    await until(lambda: cluster.workers.get(0) not in (dead, None) and dead.closed)
    assert cluster.workers[1] is other
    monitoring.cancel()


async def test_worker_restarted_by_nanny_is_kept() -> None:
    cluster = FakeCluster(1)
    monitor = WorkerMonitor(cluster)
    nanny = cluster.workers[0]
    for alive in (False, False, True, False, False):
        nanny.alive = alive
        assert not monitor._remove_dead()
    assert cluster.workers == {0: nanny}


async def test_cluster_without_workers_is_given_up_with_the_reason() -> None:
    cluster = FakeCluster(1)
    cluster.workers[0].alive = False
    cluster.error = RuntimeError("no memory left")
    reason = await asyncio.wait_for(WorkerMonitor(cluster).run(), 20)
    assert reason.endswith("RuntimeError: no memory left")
    assert cluster.starts == worker_monitor.ATTEMPTS


async def test_cluster_with_a_worker_left_is_not_given_up() -> None:
    cluster = FakeCluster(2)
    cluster.workers[0].alive = False
    cluster.error = RuntimeError("no memory left")
    monitoring = asyncio.ensure_future(WorkerMonitor(cluster).run())
    await until(lambda: cluster.starts > 2 * worker_monitor.ATTEMPTS)
    assert not monitoring.done()
    cluster.error = None
    await until(lambda: len(cluster.workers) == 2)
    monitoring.cancel()
