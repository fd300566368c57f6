"""Files of HTTP clients in a folder."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rhapsody.errors import ConfigurationError, PromptError
from rhapsody.inference.http.batches.files import FileStore, lock_folder


def stored(files: FileStore, owner: str = "alice", data: bytes = b"text") -> str:
    file_id, file = files.create(owner, "in.jsonl", "batch")
    with file:
        files.grow(file_id, len(data), bounded=True)
        file.write(data)
    files.keep(file_id)
    return file_id


def test_file_is_found_by_its_owner_only(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    file_id = stored(files)
    found = files.find("alice", file_id)
    assert (found["bytes"], found["filename"], found["purpose"]) == (4, "in.jsonl", "batch")
    assert files.all_of("alice", "batch") == [found]
    assert files.all_of("alice", "other") == files.all_of("bob") == []
    with pytest.raises(PromptError, match=f"there is no file '{file_id}'"):
        files.find("bob", file_id)


def test_file_is_found_after_a_restart_and_an_incomplete_one_is_removed(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    file_id = stored(files)
    _, half = files.create("alice", "half.jsonl", "batch")
    half.close()
    again = FileStore(tmp_path)
    assert [file["id"] for file in again.all_of("alice")] == [file_id]
    assert len(list(tmp_path.glob("*.data"))) == 1


def test_other_users_cannot_read_files_in_a_folder_that_was_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stored(FileStore(tmp_path))
    modes = [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()]
    assert modes == [0o600, 0o600]


def test_damaged_descriptions_are_left_out(tmp_path: Path) -> None:
    file_id = stored(FileStore(tmp_path))
    for number, text in enumerate(["", "[]", "{}", '{"id": 3}', "\xff"]):
        (tmp_path / f"file-{number}.json").write_bytes(text.encode("latin-1"))
    assert [file["id"] for file in FileStore(tmp_path).all_of("alice")] == [file_id]


def test_files_are_listed_while_a_thread_creates_some(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            creating = pool.submit(lambda: [stored(files) for _ in range(400)])
            while not creating.done():
                files.all_of("alice")
        assert len(creating.result()) == len(files.all_of("alice")) == 400
    finally:
        sys.setswitchinterval(interval)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    files = FileStore(tmp_path, max_file_bytes=6, max_client_bytes=10)
    with pytest.raises(PromptError, match="may have at most 6 bytes"):
        stored(files, data=b"x" * 7)
    first = stored(files, data=b"x" * 6)
    with pytest.raises(PromptError, match="may have 10 bytes together"):
        stored(files, data=b"x" * 5)
    stored(files, "bob", data=b"x" * 6)  # each client has its own limit
    files.remove(first)
    stored(files, data=b"x" * 5)
    again = FileStore(tmp_path, max_client_bytes=10)
    with pytest.raises(PromptError, match="your files may have 10 bytes together; delete some"):
        stored(again, data=b"x" * 6)


def test_number_of_files_is_bounded_for_each_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.inference.http.batches.files.MAX_FILES", 2)
    files = FileStore(tmp_path)
    first, _ = stored(files), stored(files)
    with pytest.raises(PromptError, match="you have 2 files; delete some"):
        stored(files)
    stored(files, "bob")
    files.remove(first)
    files.remove(first)
    stored(files)
    with pytest.raises(PromptError, match="you have 2 files"):
        stored(FileStore(tmp_path))


def test_folder_has_one_user(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path / "batches")
    assert (tmp_path / "batches").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigurationError, match="another program uses batch_dir"):
        lock_folder(tmp_path / "batches")
    os.close(lock)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        lock_folder(tmp_path / "file")
