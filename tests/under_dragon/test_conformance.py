"""The Dragon backend keeps the protocol."""

from collections.abc import Callable

import pytest

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.testing import BackendConformance


class TestTwoWorkers(BackendConformance):
    @pytest.fixture
    def make_backend(self) -> Callable[[], DragonExecutionBackendV3]:
        return lambda: DragonExecutionBackendV3(num_workers=2)
