"""A scripted server for the tests of endpoints."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.openai_server import OpenAIServer


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as running:
        yield running
