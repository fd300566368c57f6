"""Programs of benchmarks: their environment, and the clean-up after them."""

import subprocess
import sys
from pathlib import Path

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


def test_dragon_command_is_beside_interpreter() -> None:
    assert dragon_command("/venv/bin/python") == "/venv/bin/dragon"
