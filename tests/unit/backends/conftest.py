"""Fixtures: engines that own a backend, concurrent backends, a gate and guarded children."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.testing.gate import Gate
from rhapsody.testing.owners import FakeEngine
from tests.support.on_concurrent import ConcurrentRunner


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path, "engine.1")
    yield engine
    engine.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path, "engine.2")
    yield engine
    engine.close()


@pytest.fixture
def children() -> Iterator[GuardedGroups]:
    children = GuardedGroups()
    yield children
    children.close()


@pytest.fixture
async def threads() -> AsyncIterator[ConcurrentRunner]:
    async with ConcurrentExecutionBackend("thread", max_workers=1) as backend:
        yield ConcurrentRunner(backend)


@pytest.fixture
async def processes() -> AsyncIterator[ConcurrentRunner]:
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        yield ConcurrentRunner(backend)


@pytest.fixture(params=["threads", "processes"])
def either(request: pytest.FixtureRequest) -> ConcurrentRunner:
    runner: ConcurrentRunner = request.getfixturevalue(request.param)
    return runner


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with Gate() as gate:
        yield gate
