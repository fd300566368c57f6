"""Tests that run in one Dragon runtime over two nodes: `make test-multinode`.

Elsewhere they are not collected: they need the nodes that `nodes.py` sets up.
"""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.under_dragon import Runner, mark

HERE = Path(__file__).parent
LIMIT_S = 240
"""A backend takes seconds to start over both nodes, and many more where these have few CPUs."""

if "DRAGON_MY_PUID" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark(items, HERE, pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def here() -> str:
    """The node that the tests themselves run on."""
    return socket.gethostname()


@pytest.fixture(scope="session")
def there(here: str) -> str:
    """The other node."""
    from rhapsody.backends.dragon_runtime import allocation

    others = [host.name for host in allocation() if host.name != here]
    if not others:
        pytest.skip("this runtime has one node; make test-multinode starts one over two")
    return others[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[Runner]:
    """A worker on each node, shared by the tests of a module that do them no harm."""
    from rhapsody.backends import DragonExecutionBackendV3

    async with DragonExecutionBackendV3(num_workers=2) as backend:
        yield Runner(backend)
