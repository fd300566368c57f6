from typing import Any

import pytest

from rhapsody.errors import ConfigurationError

pytestmark = pytest.mark.dask


class ClusterOf:
    """A cluster object with a scheduler at an address."""

    security = "the security"

    def __init__(self, address: str) -> None:
        self.scheduler_address = address


class UnstartedCluster:
    """A cluster object whose scheduler does not exist yet."""

    @property
    def scheduler_address(self) -> str:
        raise RuntimeError("not started")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("tcp://10.0.0.1:8786", ("tcp://10.0.0.1:8786", None)),
        (ClusterOf("tls://10.0.0.1:8786"), ("tls://10.0.0.1:8786", "the security")),
    ],
    ids=["address", "cluster"],
)
def test_scheduler_of_returns_address_and_security(given: Any, found: tuple[str, Any]) -> None:
    from rhapsody.backends.dask.cluster import scheduler_of

    assert scheduler_of(given) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "cluster must be a cluster of dask.distributed .*, got 5"),
        (ClusterOf("<Not Connected>"), "ClusterOf is not connected .* must be awaited first"),
        (UnstartedCluster(), "UnstartedCluster is not connected"),
    ],
    ids=["number", "not connected", "not started"],
)
def test_scheduler_of_refuses_other_objects(given: Any, message: str) -> None:
    from rhapsody.backends.dask.cluster import scheduler_of

    with pytest.raises(ConfigurationError, match=message):
        scheduler_of(given)
