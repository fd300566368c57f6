"""Marks of running calls: found after the death of their process, and only then."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from rhapsody.backends.dask.call_marks import CallMarks, collect_marks, private_directory

WORKER = """
import sys, time
from pathlib import Path
from rhapsody.backends.dask.call_marks import CallMarks
marks = CallMarks(Path(sys.argv[1]), "tcp://worker")
ended = marks.add("ended")
marks.add("running")
marks.remove(ended)
marks.add("second")
print("ready", flush=True)
time.sleep(60)
"""


def test_calls_of_dead_process_are_found_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, tmp_path], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert collect_marks(tmp_path) == {}, "it is alive"
        child.kill()
    assert collect_marks(tmp_path) == {"tcp://worker": ["second", "running"]}
    assert collect_marks(tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_own_file_is_not_taken_for_a_dead_process(tmp_path: Path) -> None:
    marks = CallMarks(tmp_path, "tcp://here")
    marks.add("running")
    assert collect_marks(tmp_path) == {}
    marks.close()
    assert not list(tmp_path.iterdir())


def test_missing_directory_has_no_marks(tmp_path: Path) -> None:
    assert collect_marks(tmp_path / "missing") == {}


def test_lock_of_the_directory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "owner@host").touch()
    assert collect_marks(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["owner@host"]


def test_directory_of_another_owner_is_refused(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        private_directory(planted)


def test_directory_is_private(tmp_path: Path) -> None:
    assert private_directory(tmp_path / "new").stat().st_mode & 0o777 == 0o700
