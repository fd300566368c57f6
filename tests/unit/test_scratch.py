"""Private temporary directories, and those that killed programs left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhapsody import scratch
from rhapsody.processes import SOCKET_DIRECTORY_BYTES
from rhapsody.scratch import Scratch

PROGRAM = """
import sys
from rhapsody.scratch import Scratch
scratch = Scratch("test")
(scratch.path / "log").write_text("last words")
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short path for this test and the programs that it starts."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a program that owns a directory; yield both."""
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        try:
            yield program, Path(program.stdout.readline().strip())
        finally:
            program.kill()


def test_directory_is_private_and_temporary(temporary: Path) -> None:
    made = Scratch("test")
    assert made.path.parent == temporary
    assert made.path.name.startswith("rhapsody-test-")
    assert made.path.stat().st_mode & 0o777 == 0o700
    made.remove()
    made.remove()
    assert not made.path.exists()


def test_path_is_short_if_the_temporary_folder_is_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    scratch = Scratch("test")
    assert len(os.fsencode(scratch.path)) <= SOCKET_DIRECTORY_BYTES
    assert not list(deep.iterdir())
    scratch.remove()


def test_directory_of_a_killed_program_is_removed() -> None:
    with owner() as (program, left):
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert (left / "log").read_text() == "last words"
        Scratch("test").remove()
        assert not left.exists()


def test_directory_that_is_still_written_to_is_removed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with owner() as (program, path):
        program.kill()
        program.wait()
        with monkeypatch.context() as patch:
            patch.setattr(scratch, "_remove", lambda _: None)  # another process wrote it anew
            Scratch("test").remove()
        assert path.exists()
        Scratch("test").remove()
        assert not path.exists()


def test_directories_of_running_programs_are_kept() -> None:
    with owner() as (_, theirs):
        ours = Scratch("test")
        Scratch("test").remove()
        assert theirs.is_dir()
        assert ours.path.is_dir()
        ours.remove()


def test_directories_of_other_machines_and_similar_names_are_kept(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    elsewhere = Scratch("test")
    os.close(elsewhere._lock or -1)  # releases the lock, as if its owner had ended
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    users = temporary / "rhapsody-data"
    users.mkdir()
    link = temporary / "rhapsody-link"
    link.symlink_to(elsewhere.path)
    (temporary / "rhapsody-file").touch()
    before = set(temporary.iterdir())
    Scratch("test").remove()
    assert set(temporary.iterdir()) == before


def test_directory_works_without_file_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    scratch, other = Scratch("test"), Scratch("test")
    assert scratch.path.is_dir()
    scratch.remove()
    other.remove()
