"""The process that removes a store after its program."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhapsody.backends.data.guard import StoreGuard
from rhapsody.backends.data.segments import Folders
from tests.support.waiting import until

PROGRAM = """
import os, sys
from rhapsody.backends.data.guard import StoreGuard
from rhapsody.backends.data.segments import Folders
guard = StoreGuard(Folders(sys.argv[1], sys.argv[2], 0))
print(guard._process.pid, flush=True)
os._exit(0)
"""


async def test_folders_are_removed_after_the_end_of_the_program(folders: Folders) -> None:
    for folder in (folders.memory, folders.disk):
        for name in ("memory-1-1", "owner@host"):
            (Path(folder) / name).touch()
    command = [sys.executable, "-c", PROGRAM, folders.memory, folders.disk]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    await until(lambda: not os.path.exists(folders.memory) and not os.path.exists(folders.disk))


def test_stopped_guard_removes_nothing(folders: Folders) -> None:
    guard = StoreGuard(folders)
    guard.stop()
    time.sleep(0.05)
    assert os.path.isdir(folders.memory)


def test_program_runs_without_a_guard_that_cannot_start(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    StoreGuard(folders).stop()
