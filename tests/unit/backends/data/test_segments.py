"""Segments as files."""

import errno
import os

import pytest

from rhapsody.backends.data.segments import DISK, MEMORY, Folders, Segments, writer_of


def create(segments: Segments, kind: str, writer: int, size: int) -> str:
    created = segments.create(kind, writer, size)
    assert created is not None
    os.close(created[1])
    return created[0]


def test_segment_is_readable_by_its_owner_only(segments: Segments) -> None:
    for kind in (MEMORY, DISK):
        name = create(segments, kind, 1, 100)
        assert os.stat(segments.path(name)).st_mode & 0o777 == 0o600


def test_name_tells_the_writer(segments: Segments) -> None:
    assert writer_of(create(segments, MEMORY, 17, 1)) == 17


def test_memory_is_bounded_and_disk_is_not(segments: Segments) -> None:
    name = create(segments, MEMORY, 1, 1 << 20)
    assert segments.create(MEMORY, 1, 1) is None
    create(segments, DISK, 1, 1)
    segments.remove(name)
    assert segments.used == 0
    create(segments, MEMORY, 1, 1)


def test_remove_is_idempotent(segments: Segments) -> None:
    name = create(segments, MEMORY, 1, 10)
    segments.remove(name)
    segments.remove(name)
    assert segments.used == 0


def test_removed_segment_stays_readable_unless_it_is_unused(segments: Segments) -> None:
    for unused, size in ((False, 10), (True, 0)):
        name = create(segments, MEMORY, 1, 10)
        file = segments.open(name)
        segments.remove(name, unused)
        assert os.fstat(file).st_size == size
        assert segments.used == 0
        os.close(file)


def test_segment_is_removed_without_a_file_descriptor(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = create(segments, MEMORY, 1, 10)

    def no_descriptor(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_descriptor)
        segments.remove(name, unused=True)
    assert not os.path.exists(segments.path(name))
    assert segments.used == 0


def test_planted_link_is_not_followed(segments: Segments, folders: Folders) -> None:
    os.symlink("/etc/passwd", os.path.join(folders.memory, "memory-1-1-10"))
    with pytest.raises(FileExistsError):
        segments.create(MEMORY, 1, 10)
    with pytest.raises(OSError, match="symbolic"):
        segments.open("memory-1-1-10")


def test_what_a_killed_process_left_is_removed(segments: Segments) -> None:
    known = create(segments, MEMORY, 1, 10)
    left = [create(segments, MEMORY, 1, 20), create(segments, DISK, 1, 30)]
    other = create(segments, MEMORY, 11, 40)
    segments.remove_all_of(1, {known})
    assert not any(os.path.exists(segments.path(name)) for name in left)
    assert all(os.path.exists(segments.path(name)) for name in (known, other))
    assert segments.used == 50


def test_account_is_corrected_after_a_kill(segments: Segments) -> None:
    name = create(segments, MEMORY, 2, 100)
    os.unlink(segments.path(name))  # killed before the entry in the account
    segments.remove_all_of(2, ())
    assert segments.used == 0
