"""Fixtures: a shared cluster of worker processes for tests that break nothing, and runners."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends import DaskExecutionBackend
from tests.support.on_dask import SMALL, DaskRunner


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        resources={"GPU": 1, "licence": 2},
    ) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def on_processes(cluster: Any) -> AsyncIterator[DaskRunner]:
    """A runner on the shared cluster of worker processes."""
    async with DaskExecutionBackend(cluster=cluster) as backend:
        yield DaskRunner(backend)


@pytest_asyncio.fixture
async def on_threads() -> AsyncIterator[DaskRunner]:
    """A runner on the backend's own cluster, in threads."""
    async with DaskExecutionBackend(SMALL) as backend:
        yield DaskRunner(backend)
