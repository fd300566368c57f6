"""What the process tree uses: both ways of asking agree."""

import os
import subprocess
import sys

import pytest

from rhapsody.telemetry import resources
from rhapsody.telemetry.resources import ProcessSampler


@pytest.mark.parametrize("read", ["_read_proc", "_read_psutil"])
def test_children_are_counted_too(read: str) -> None:
    if read == "_read_psutil":
        pytest.importorskip("psutil")
    elif not os.path.exists("/proc/self/stat"):
        pytest.skip("needs /proc")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        tree = getattr(resources, read)()
    finally:
        child.communicate(b"\n", timeout=20)
    assert {os.getpid(), child.pid} <= set(tree)
    seconds, resident = tree[os.getpid()]
    assert seconds > 0
    assert resident > 1 << 20


def test_a_sample_has_cpu_from_the_second_on() -> None:
    sampler = ProcessSampler()
    first, second = sampler.sample(), sampler.sample()
    assert first.cpu_percent is None
    assert second.cpu_percent is not None
    assert second.cpu_percent >= 0
    assert first.memory_percent is not None
    assert 0 < first.memory_percent < 100


def test_a_system_that_says_nothing_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ProcessSampler()
    monkeypatch.setattr(sampler, "_read", dict)
    assert sampler.sample() == (None, None, None)
