"""Tests that run in one Dragon runtime over two nodes: `make test-multinode`.

Without a runtime they are not collected. They need the nodes that `nodes.py` sets up.
"""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.marking import add_marks
from tests.support.on_dragon import DragonRunner

HERE = Path(__file__).parent
LIMIT_S = 240
"""On nodes with few CPUs a backend may take many seconds to start."""

if "DRAGON_MY_PUID" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    add_marks(items, HERE, pytest.mark.dragon, pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def here() -> str:
    """The node that the tests themselves run on."""
    return socket.gethostname()


@pytest.fixture(scope="session")
def there(here: str) -> str:
    """The other node."""
    from rhapsody.allocation import allocation

    others = [node.name for node in allocation() if node.name != here]
    if not others:
        pytest.skip("this runtime has one node; make test-multinode starts one over two")
    return others[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[DragonRunner]:
    """A backend with a worker on each node, for all tests of a module that leave it usable."""
    from rhapsody.backends import DragonExecutionBackendV3

    async with DragonExecutionBackendV3(num_workers=2) as backend:
        yield DragonRunner(backend)
