"""Backends on the embedded model: real servers in processes of their own."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.service import service_loop
from tests.support.inference import embedded

Backend = DragonVllmInferenceBackend


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Start backends of a test's own; they are shut down after it."""
    started: list[Backend] = []

    async def start(**options: Any) -> Backend:
        backend = embedded(**options)
        started.append(backend)
        return await backend.initialize()

    yield start
    for backend in started:
        await backend.shutdown()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """One backend in server mode for all tests of a module."""
    # A backend lives on the service loop, so it survives the loop of each test.
    backend = embedded(use_service=True)
    service_loop().run_blocking(backend.initialize())
    yield backend
    service_loop().run_blocking(backend.shutdown())


@pytest.fixture
def url(backend: Backend) -> str:
    endpoint = backend.get_endpoint()
    assert endpoint is not None
    return endpoint


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(base_url=url, timeout=timeout) as session:
        yield session
