"""Backends on the embedded model: real servers in separate processes."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop
from tests.support.inference import embedded

Backend = DragonVllmInferenceBackend


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Start backends that are shut down after the test."""
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
    """A backend in server mode, shared by all tests of a module."""
    # A backend runs on the service loop, so it outlives the loop of each test.
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
