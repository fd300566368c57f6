"""Input and output files: digests by contents, and missing files."""

import os
import time
from pathlib import Path

import pytest

from rhapsody.journal.files import FileDigests, missing_files, resolved


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.dat"
    path.write_text("mesh")
    return path


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_digest_depends_on_contents_only(file: Path) -> None:
    first = FileDigests().digest(str(file))
    age(file, 100)
    other = file.with_name("other.dat")
    other.write_text("mesh")
    assert FileDigests().digest(str(file)) == FileDigests().digest(str(other)) == first
    file.write_text("MESH")
    assert FileDigests().digest(str(file)) != first


def test_file_with_same_size_and_time_is_not_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = FileDigests()
    age(file, 100)
    first = digests.digest(str(file))
    stamp = file.stat()
    file.write_text("MESH")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digests.digest(str(file)) == first


def test_file_that_just_changed_is_read_again(file: Path) -> None:
    digests = FileDigests()
    first = digests.digest(str(file))
    stamp = file.stat()
    file.write_text("MESH")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digests.digest(str(file)) != first


def test_folder_counts_by_its_files(file: Path) -> None:
    digests = FileDigests()
    first = digests.digest(str(file.parent))
    (file.parent / "more").mkdir()
    (file.parent / "more" / "mesh.dat").write_text("mesh")
    assert digests.digest(str(file.parent)) != first


def test_missing_input_raises() -> None:
    with pytest.raises(FileNotFoundError):
        FileDigests().digest("no such file")


def test_paths_are_relative_to_the_folder_of_the_task(file: Path) -> None:
    folder = str(file.parent)
    assert resolved(["mesh.dat"], folder) == [str(file)]
    assert resolved([str(file)], "/elsewhere") == [str(file)]
    assert missing_files(resolved(["mesh.dat", "other.dat"], folder)) == [f"{folder}/other.dat"]
