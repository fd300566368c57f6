"""Conformance of the no-op backend."""

from collections.abc import Callable

import pytest

from rhapsody.backends import NoopExecutionBackend
from rhapsody.testing import BackendConformance


class TestNoop(BackendConformance):
    runs_tasks = False

    @pytest.fixture
    def make_backend(self) -> Callable[[], NoopExecutionBackend]:
        return NoopExecutionBackend
