"""The base class of all clauses: fixtures for a backend, its owners and a gate."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from rhapsody.backends.protocol import EXECUTABLE, FUNCTION, PROMPT, accepted_kinds
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from rhapsody.testing.owners import FakeEngine

__all__ = ["Clauses"]

ASYNC_FUNCTION = "async function"

every_kind = pytest.mark.parametrize("kind", [FUNCTION, EXECUTABLE, PROMPT])
held_kinds = pytest.mark.parametrize("kind", [FUNCTION, ASYNC_FUNCTION, EXECUTABLE])


class Clauses:
    """Fixtures and helpers of the clauses."""

    runs_tasks: ClassVar[bool] = True
    stops_functions: ClassVar[bool] = True
    gate_host: ClassVar[str] = "127.0.0.1"

    # The engine submits its tasks in a running loop, so every test needs one.
    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]

    @pytest.fixture
    def make_backend(self) -> Callable[[], Any]:
        """Return a callable that creates a backend. Subclasses must define it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture `make_backend`")

    @pytest_asyncio.fixture
    async def backend(self, make_backend: Callable[[], Any]) -> AsyncIterator[Any]:
        """Return a new backend; it is shut down after the test."""
        backend = make_backend()
        if inspect.isawaitable(backend):
            backend = await backend
        yield backend
        await backend.shutdown()

    @pytest.fixture
    def make_engine(self, backend: Any, tmp_path: Path) -> Iterator[Callable[..., FakeEngine]]:
        """Return a callable that creates an engine and attaches it to the backend."""
        engines: list[FakeEngine] = []

        def make(uid: str = "asyncflow.session.fake") -> FakeEngine:
            engine = FakeEngine(tmp_path, uid)
            engine.attach(backend)
            engines.append(engine)
            return engine

        yield make
        for engine in engines:
            engine.close()

    @pytest_asyncio.fixture
    async def engine(self, make_engine: Callable[..., FakeEngine]) -> FakeEngine:
        """Return an engine attached to the backend."""
        return make_engine()

    @pytest_asyncio.fixture
    async def gate(self) -> AsyncIterator[Gate]:
        """Return a gate that tasks wait at."""
        async with Gate(self.gate_host) as gate:
            yield gate

    def need(self, backend: Any, kind: str, *, real: bool = False) -> None:
        """Skip the test if the backend does not take a kind of task, or does not really run it."""
        kind = FUNCTION if kind == ASYNC_FUNCTION else kind
        if kind not in accepted_kinds(backend):
            pytest.skip(f"the backend does not take {kind} tasks")
        if real and not self.runs_tasks:
            pytest.skip("the backend does not really run its tasks")

    def one_task(self, backend: Any, uid: str = "task.000001") -> dict[str, Any]:
        """Return a quick task of a kind that the backend takes."""
        return samples.quick(min(accepted_kinds(backend)), uid)
