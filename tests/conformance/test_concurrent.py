"""Conformance of the concurrent backend, with its own pools and with executors of the caller."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import BackendConformance

MakeBackend = Callable[[], ConcurrentExecutionBackend]


class TestOwnThreads(BackendConformance):
    stops_functions = False

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return lambda: ConcurrentExecutionBackend("thread", max_workers=4)


class TestOwnProcesses(BackendConformance):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        return lambda: ConcurrentExecutionBackend("process", max_workers=1)


class TestCallersThreads(BackendConformance):
    stops_functions = False

    @pytest.fixture
    def make_backend(self) -> Iterator[MakeBackend]:
        with ThreadPoolExecutor(4) as executor:
            yield lambda: ConcurrentExecutionBackend(executor)


class CallersProcesses(BackendConformance):
    method = "spawn"

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Iterator[ProcessPoolExecutor]:
        context = multiprocessing.get_context(cls.method)
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            yield executor

    @pytest.fixture
    def make_backend(self, executor: ProcessPoolExecutor) -> MakeBackend:
        return lambda: ConcurrentExecutionBackend(executor)


class TestCallersSpawnedProcesses(CallersProcesses):
    method = "spawn"


class TestCallersForkserverProcesses(CallersProcesses):
    method = "forkserver"
