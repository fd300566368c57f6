"""Conformance of the Dragon backend, on the program's node and through an agent."""

from collections.abc import Callable

import pytest

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.backends.dragon import worker_manager
from rhapsody.testing import BackendConformance


class TestTwoWorkers(BackendConformance):
    @pytest.fixture
    def make_backend(self) -> Callable[[], DragonExecutionBackendV3]:
        return lambda: DragonExecutionBackendV3(num_workers=2)


class TestThroughAnAgent(BackendConformance):
    @pytest.fixture
    def make_backend(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], DragonExecutionBackendV3]:
        monkeypatch.setattr(worker_manager, "AGENTS_EVERYWHERE", True)
        return lambda: DragonExecutionBackendV3(num_workers=2)
