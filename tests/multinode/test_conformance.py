"""The Dragon backend keeps the protocol over two nodes."""

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


class TestTheOtherNodeAlone(BackendConformance):
    gate_host = socket.gethostbyname(socket.gethostname())

    @pytest.fixture
    def make_backend(self, there: str) -> Callable[[], DragonExecutionBackendV3]:
        return lambda: DragonExecutionBackendV3(num_workers=1, nodes=[there])
