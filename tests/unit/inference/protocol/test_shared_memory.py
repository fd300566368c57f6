"""Shared memory of a server's process group."""

import os
import signal
import subprocess
import sys

import pytest

from rhapsody.inference.protocol.shared_memory import remove_segments, segments_of
from rhapsody.processes import GROUP

pytestmark = pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs Linux")

SCRIPT = """
from multiprocessing.shared_memory import SharedMemory
import sys
memory = SharedMemory(create=True, size=10)
print(memory.name, flush=True)
sys.stdin.read()
"""


def test_segments_of_a_killed_group_are_removed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **GROUP,
    ) as process:
        assert process.stdout is not None
        path = f"/dev/shm/{process.stdout.readline().strip()}"
        segments = segments_of(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
    assert segments == {path}
    assert os.path.exists(path), "the tracker was killed too"
    remove_segments(segments)
    assert not os.path.exists(path)
    remove_segments(segments)


def test_other_groups_are_not_looked_at() -> None:
    assert segments_of(os.getpgrp() + 10_000_000) == set()
