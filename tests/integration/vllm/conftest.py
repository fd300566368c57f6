"""One vLLM server for all tests that do not break it: its start takes half a minute."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop
from tests.support.marking import add_marks
from tests.support.vllm_servers import set_environment, vllm_backend

HERE = Path(__file__).parent
LIMIT_S = 360
"""The first test starts the server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    add_marks(items, HERE, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def served() -> Iterator[DragonVllmInferenceBackend]:
    """One backend in server mode, with a key."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        backend = vllm_backend(use_service=True, api_key="open-sesame")
        # A backend lives on the service loop, so it survives the loop of each test.
        service_loop().run_blocking(backend.initialize())
        yield backend
        service_loop().run_blocking(backend.shutdown())


@pytest.fixture
def url(served: DragonVllmInferenceBackend) -> str:
    endpoint = served.get_endpoint()
    assert endpoint is not None
    return endpoint


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": "Bearer open-sesame"}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session:
        yield session


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    key = "open-sesame"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as made:
        yield made
