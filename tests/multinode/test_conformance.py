"""Conformance of the Dragon backend over two nodes; a single task runs on the other node."""

import socket
from collections.abc import Callable

import pytest

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.testing import BackendConformance


class TestAWorkerOnEachNode(BackendConformance):
    gate_host = socket.gethostbyname(socket.gethostname())

    @pytest.fixture
    def make_backend(self) -> Callable[[], DragonExecutionBackendV3]:
        return lambda: DragonExecutionBackendV3(num_workers=2)
