"""Conformance of the endpoint backend, with the HTTP server of an embedded model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from rhapsody.backends import EndpointInferenceBackend
from rhapsody.testing import BackendConformance
from tests.support.inference import MODEL, embedded


class TestEndpoint(BackendConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def url(cls) -> Iterator[str]:
        """The base URL of a server that another backend runs."""

        async def serve() -> str:
            await server
            return str(server.get_endpoint())

        server = embedded(use_service=True, api_key="a-key")
        endpoint = asyncio.run(serve())
        yield f"{endpoint}/v1"
        asyncio.run(server.shutdown())

    @pytest.fixture
    def make_backend(self, url: str) -> Callable[[], EndpointInferenceBackend]:
        return lambda: EndpointInferenceBackend(url, MODEL, "a-key")

    @pytest_asyncio.fixture
    async def backend(
        self, make_backend: Callable[[], EndpointInferenceBackend]
    ) -> AsyncIterator[EndpointInferenceBackend]:
        backend = make_backend()
        yield await backend
        await backend.shutdown()
