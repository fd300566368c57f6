"""Conformance of the Dask backend, on its own cluster and on a cluster of the caller."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rhapsody.backends import DaskExecutionBackend
from rhapsody.testing import BackendConformance

MakeBackend = Callable[[], DaskExecutionBackend]

pytestmark = pytest.mark.dask


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=3, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


class TestOwnThreads(BackendConformance):
    stops_functions = False

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return lambda: DaskExecutionBackend(
            {"n_workers": 1, "threads_per_worker": 4, "processes": False}
        )


class TestCallersProcesses(BackendConformance):
    stops_functions = False

    @pytest.fixture
    def make_backend(self, cluster: Any) -> MakeBackend:
        return lambda: DaskExecutionBackend(cluster=cluster)
