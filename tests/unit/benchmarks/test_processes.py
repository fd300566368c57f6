"""Programs of benchmarks: their environment, and the clean-up after them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import dragon_command, program
from tests.support.processes import wait_gone
from tests.support.waiting import until_blocking


def test_exit_kills_orphaned_grandchild(tmp_path: Path) -> None:
    # A grandchild in its own session, whose parent has exited.
    orphan = (
        "import time; open('orphan', 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    )
    with program([sys.executable, "-c", parent], cwd=tmp_path) as process:
        assert process.wait(30) == 0
        file = tmp_path / "orphan"
        until_blocking(lambda: file.exists() and file.read_text())
        pid = int(file.read_text())
    assert wait_gone(pid) == []


def test_program_gets_variables_and_temporary_folder(tmp_path: Path) -> None:
    code = "import os; print(os.environ['EXTRA'], os.environ['TMPDIR'])"
    with program(
        [sys.executable, "-c", code], {"EXTRA": "value"}, stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        output, _ = process.communicate(timeout=30)
        extra, folder = output.decode().split()
        assert extra == "value"
        assert Path(folder).is_dir()
    assert not Path(folder).exists()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs Linux")
def test_exit_removes_the_shared_memory_that_the_program_uses(tmp_path: Path) -> None:
    # As the pool of a dictionary of Dragon: its name does not say which runtime made it.
    code = (
        "import mmap, sys, time; file = open(sys.argv[1], 'w+b'); file.truncate(4096)\n"
        "memory = mmap.mmap(file.fileno(), 4096); open('made', 'w').close(); time.sleep(60)"
    )
    own, other = (Path(f"/dev/shm/DD-rhapsody-{os.getpid()}-{name}") for name in ("own", "other"))
    other.touch()
    try:
        with program([sys.executable, "-c", code, str(own)], cwd=tmp_path):
            until_blocking(lambda: (tmp_path / "made").exists())
        assert not own.exists()
        assert other.exists()
    finally:
        other.unlink()


def test_dragon_command_is_beside_interpreter() -> None:
    assert dragon_command("/venv/bin/python") == "/venv/bin/dragon"
