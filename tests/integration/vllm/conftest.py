"""One vLLM server for all tests that break nothing: its start takes half a minute."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import openai
import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.service import service_loop
from tests.support.vllm_servers import set_environment, vllm_backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "vllm":
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(360))  # whichever is first, starts the server


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
