"""Engines with `ai_task`, AsyncFlow's own and Rhapsody's, and tasks on them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.engines import ENGINES, Echo, MakeFlow, make_engine


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make(kind: str, tmp_path: Path) -> AsyncIterator[MakeFlow]:
    engines = []

    async def make(*backends: Any, **options: Any) -> Any:
        engine = await make_engine(kind, list(backends) or None, work_dir=str(tmp_path), **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await engine.shutdown()


@pytest.fixture
def ai() -> Echo:
    return Echo()


@pytest.fixture
async def flow(make: MakeFlow, ai: Echo) -> Any:
    """An engine that computes in threads and answers prompts with their echo."""
    return await make(ConcurrentExecutionBackend(name="cpu"), ai)


@pytest.fixture
def ask(flow: Any) -> Any:
    """An ai_task that asks what it is given."""

    @flow.ai_task
    async def ask(what: Any) -> str:
        return f"{what}?"

    return ask


@pytest.fixture
def three(flow: Any) -> Any:
    """A function task that returns 3."""

    @flow.function_task
    async def three() -> int:
        return 3

    return three


@pytest.fixture
def failing(flow: Any) -> Any:
    @flow.function_task
    async def failing() -> None:
        raise ValueError("intended")

    return failing


@pytest.fixture
async def held(make: MakeFlow) -> tuple[Any, Echo, Any]:
    """An engine, its inference backend that does not answer, and an ai_task."""
    ai = Echo(held=True)
    flow = await make(ConcurrentExecutionBackend(name="cpu"), ai)

    @flow.ai_task
    async def ask(what: Any = "hi") -> str:
        return f"{what}"

    return flow, ai, ask
