"""Fixtures: AsyncFlow's engine with `ai_task`, Rhapsody's engine, and tasks of both."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
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
    """An engine with a backend of threads, and a backend that echoes prompts."""
    return await make(ConcurrentExecutionBackend(name="cpu"), ai)


@pytest.fixture
def ask(flow: Any) -> Any:
    """An ai_task that returns its argument with a question mark."""

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
    """An engine, its inference backend, which does not respond, and an ai_task."""
    ai = Echo(held=True)
    flow = await make(ConcurrentExecutionBackend(name="cpu"), ai)

    @flow.ai_task
    async def ask(what: Any = "hi") -> str:
        return f"{what}"

    return flow, ai, ask


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    """Rhapsody's engine with a backend of threads."""
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as engine:
        yield engine


@pytest.fixture
def number(engine: WorkflowEngine) -> Any:
    """A function task that returns its argument."""

    @engine.function_task
    async def number(value: Any) -> Any:
        return value

    return number
