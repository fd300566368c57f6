"""The limits and the directory of a worker, restored after a task changed them, and its memory."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rhapsody.backends.workers.limits import PeakMemory, ResourceLimits


@pytest.fixture
def open_files() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_lowered_soft_limit_is_restored(open_files: tuple[int, int]) -> None:
    soft, hard = open_files
    limits = ResourceLimits()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    assert limits.restore()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_lowered_hard_limit_bounds_the_restored_soft_limit(
    open_files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, _ = open_files
    limits = ResourceLimits()
    now = {resource.RLIMIT_NOFILE: (soft - 2, soft - 1)}
    original = resource.getrlimit

    def getrlimit(kind: int) -> tuple[int, int]:
        return now.get(kind) or original(kind)

    def setrlimit(kind: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > now[kind][1]:
            raise ValueError("not allowed to raise maximum limit")  # as for an ordinary user
        now[kind] = wanted

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert not limits.restore()
    assert now[resource.RLIMIT_NOFILE] == (soft - 1, soft - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_memory_is_that_since_the_reset() -> None:
    memory = PeakMemory()
    before = memory.read()
    memory.reset()
    used = b"x" * (100 << 20)
    del used
    peak = memory.read()
    memory.reset()
    after = memory.read()
    memory.reset(50 << 20)
    less = memory.read()
    memory.close()
    assert before is not None
    assert peak is not None
    assert after is not None
    assert peak > 100 << 20
    assert after < peak - (50 << 20)
    assert less is not None
    assert less < max(1, after - (40 << 20))
    assert memory.read() is None


def test_peak_memory_is_not_known_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    memory = PeakMemory()
    memory.reset()
    assert memory.read() is None


SCRIPT = """
import os, sys, tempfile
from rhapsody.backends.workers.limits import WorkingDirectory

home = os.getcwd()
directory = WorkingDirectory()
with tempfile.TemporaryDirectory() as other:
    os.chdir(other)
    os.rmdir(other)
    directory.restore()
    assert os.getcwd() == home
    os.mkdir(other)
    descriptor = os.open(other, os.O_RDONLY)
    os.fchdir(descriptor)
    directory.restore()
    assert os.getcwd() == home
"""


def test_directory_is_restored_also_if_the_other_was_removed() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=50)
