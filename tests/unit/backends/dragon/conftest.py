"""Dragon's runtime, replaced by local processes, threads and queues."""

import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.fake_dragon import FakeProcesses, install_modules
from tests.support.waiting import until


@pytest.fixture
def dragon_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    install_modules(monkeypatch)


@pytest_asyncio.fixture
async def no_threads_left() -> AsyncIterator[None]:
    """Wait for the backend's threads while the loop that they report to still runs."""
    yield
    await until(lambda: not any("rhapsody-dragon" in t.name for t in threading.enumerate()))


@pytest_asyncio.fixture
async def local_processes(
    dragon_modules: None, monkeypatch: pytest.MonkeyPatch, no_threads_left: None
) -> AsyncIterator[FakeProcesses]:
    processes = FakeProcesses(monkeypatch)
    yield processes
    processes.close()
