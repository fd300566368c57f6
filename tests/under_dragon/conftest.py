"""Tests that run inside the Dragon runtime: `dragon pytest tests/under_dragon`.

The suite runs them so, one runtime for each module, in tests/integration/test_dragon.py. Elsewhere
they are not collected.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.under_dragon import Runner, mark

HERE = Path(__file__).parent

if "DRAGON_MY_PUID" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark(items, HERE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[Runner]:
    """Two workers, shared by the tests of a module that do them no harm."""
    from rhapsody.backends import DragonExecutionBackendV3

    async with DragonExecutionBackendV3(num_workers=2) as backend:
        yield Runner(backend)
