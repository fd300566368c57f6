"""Tests that run inside the Dragon runtime: `dragon pytest tests/under_dragon`.

tests/integration/test_dragon.py runs them this way, with one runtime per module. Without a runtime
they are not collected.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.marking import add_marks
from tests.support.on_dragon import DragonRunner

HERE = Path(__file__).parent

if "DRAGON_MY_PUID" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    add_marks(items, HERE, pytest.mark.dragon)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[DragonRunner]:
    """A backend with two workers for all tests of a module that leave it usable."""
    from rhapsody.backends import DragonExecutionBackendV3

    async with DragonExecutionBackendV3(num_workers=2) as backend:
        yield DragonRunner(backend)
