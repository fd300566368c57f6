"""The Dragon backend keeps the protocol, on the program's own host and as it does on others."""

from collections.abc import Callable

import pytest

from rhapsody.backends import DragonExecutionBackendV3, dragon_crew
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
        monkeypatch.setattr(dragon_crew, "AGENTS_EVERYWHERE", True)
        return lambda: DragonExecutionBackendV3(num_workers=2)
