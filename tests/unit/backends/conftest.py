"""Two engines, to own a backend one after the other, and a guard for children."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.backends.guard import GuardedGroups
from rhapsody.testing.owners import FakeEngine


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
