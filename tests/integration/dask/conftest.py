"""A cluster of worker processes, made by the caller and shared by the tests that break nothing."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends import DaskExecutionBackend
from tests.support.on_dask import SMALL, Runner


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
async def on_processes(cluster: Any) -> AsyncIterator[Runner]:
    """A runner on the shared cluster of processes."""
    async with DaskExecutionBackend(cluster=cluster) as backend:
        yield Runner(backend)


@pytest_asyncio.fixture
async def on_threads() -> AsyncIterator[Runner]:
    """A runner on a cluster of the backend's own, in threads."""
    async with DaskExecutionBackend(SMALL) as backend:
        yield Runner(backend)
