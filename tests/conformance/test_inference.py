"""Conformance of the inference backend, with the embedded model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.testing import BackendConformance


def make() -> DragonVllmInferenceBackend:
    return DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )


class TestInference(BackendConformance):
    @pytest.fixture
    def make_backend(self) -> Callable[[], DragonVllmInferenceBackend]:
        return make

    @pytest.fixture(scope="class")
    @classmethod
    def started(cls) -> Iterator[DragonVllmInferenceBackend]:
        """One backend for all tests; it starts again after a test has shut it down."""
        backend = make()
        yield backend
        asyncio.run(backend.shutdown())

    @pytest_asyncio.fixture
    async def backend(  # type: ignore[override]  # a fixture's arguments are names of others
        self, started: DragonVllmInferenceBackend
    ) -> AsyncIterator[DragonVllmInferenceBackend]:
        yield await started
