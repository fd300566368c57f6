"""A backend whose tasks stay active until they are released."""

from collections.abc import AsyncIterator

import pytest

from tests.support.held import HeldBackend


@pytest.fixture
async def held() -> AsyncIterator[HeldBackend]:
    backend = HeldBackend()
    yield backend
    await backend.shutdown()
