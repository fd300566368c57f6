"""Writing into segments, new and used ones."""

import errno
import mmap
import os
import threading
import time
from pathlib import Path
from random import Random

import pytest

from rhapsody.backends.data import writer as writer_module
from rhapsody.backends.data.segments import DISK, MEMORY, Folders, Segments
from rhapsody.backends.data.writer import ALIGNMENT, SegmentWriter

SIZE = 100_000


@pytest.fixture
def writer(segments: Segments) -> SegmentWriter:
    return SegmentWriter(segments, 3)


def data(fill: int, size: int = SIZE) -> memoryview:
    return memoryview(bytes([fill]) * size)


def content(segments: Segments, name: str) -> bytes:
    return Path(segments.path(name)).read_bytes()


def test_arrays_are_aligned_and_the_stream_has_no_gaps(
    writer: SegmentWriter, segments: Segments
) -> None:
    stream = [memoryview(b"in"), memoryview(b"pieces")]
    name, offsets = writer.write([data(1, 70), data(2, 5)], stream)
    assert offsets == [0, 2 * ALIGNMENT, 3 * ALIGNMENT]
    written = content(segments, name)
    assert written[:70] == bytes([1]) * 70
    assert written[offsets[1] :][:5] == bytes([2]) * 5
    assert written[offsets[2] :] == b"inpieces"


def test_unused_segment_is_written_again(writer: SegmentWriter, segments: Segments) -> None:
    names = []
    for fill in (1, 2, 3):  # the second goes through a new mapping, the third through a kept one
        name, _ = writer.write([data(fill)])
        assert content(segments, name)[:SIZE] == bytes([fill]) * SIZE
        writer.take_back(name, True)
        names.append(name)
    assert len(set(names)) == 1


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "no more threads"])
def test_large_data_is_copied_by_two_threads(
    *,
    threads: bool,
    writer: SegmentWriter,
    segments: Segments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not threads:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(writer_module, "TWO_THREADS_BYTES", SIZE)
    for seed in range(3):
        arrays = [bytearray(Random(seed).randbytes(SIZE + 7)), bytearray(b"small")]
        name, offsets = writer.write([memoryview(array) for array in arrays])
        written = content(segments, name)
        assert [
            written[offset : offset + len(array)]
            for offset, array in zip(offsets, arrays, strict=False)
        ] == arrays
        writer.take_back(name, True)


def test_used_segment_that_cannot_be_written_again_is_removed(
    writer: SegmentWriter, segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = writer.write([data(1)])
    writer.take_back(name, True)

    def no_memory(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_memory)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        writer.write([data(2)])
    assert not os.path.exists(segments.path(name))


def test_segment_that_may_not_be_written_again_is_removed(
    writer: SegmentWriter, segments: Segments
) -> None:
    name, _ = writer.write([data(1)])
    writer.take_back(name, False)
    assert not os.path.exists(segments.path(name))
    assert writer.write([data(1)])[0] != name


def test_much_larger_segment_is_not_used(writer: SegmentWriter) -> None:
    name, _ = writer.write([data(1)])
    writer.take_back(name, True)
    assert writer.write([data(2, SIZE // 10)])[0] != name


def test_few_unused_segments_are_kept_until_the_second_trim(
    writer: SegmentWriter, segments: Segments, folders: Folders
) -> None:
    for name in [writer.write([data(1)])[0] for _ in range(5)]:
        writer.take_back(name, True)
    for _ in range(2):
        assert len(os.listdir(folders.memory)) == writer_module.KEPT_SEGMENTS
        writer.trim()
    assert os.listdir(folders.memory) == []
    assert segments.used == 0


def test_mapped_bytes_are_those_of_segments_that_were_written_again(writer: SegmentWriter) -> None:
    known = []
    for reusable in (True, True, False):
        name, _ = writer.write([data(1)])
        known.append(writer.mapped_bytes)
        writer.take_back(name, reusable)
    assert writer.mapped_bytes == 0
    size = known[-1]
    assert size >= SIZE
    assert known == [0, size, size]
    for _ in range(2):
        writer.take_back(writer.write([data(1)])[0], True)
    for _ in range(2):
        writer.trim()
    assert writer.mapped_bytes == 0


def test_segment_in_use_between_trims_is_kept(writer: SegmentWriter) -> None:
    names = set()
    for _ in range(4):
        name, _ = writer.write([data(1)])
        writer.take_back(name, True)
        writer.trim()
        names.add(name)
    assert len(names) == 1


def test_data_beyond_the_limit_goes_to_disk(writer: SegmentWriter, segments: Segments) -> None:
    name, _ = writer.write([data(1, 2 << 20)])
    assert name.startswith(DISK)
    assert len(content(segments, name)) == 2 << 20
    writer.take_back(name, True)
    assert not os.path.exists(segments.path(name))


def test_unused_segments_make_room(writer: SegmentWriter) -> None:
    writer.take_back(writer.write([data(1, 700_000)])[0], True)
    name, _ = writer.write([data(2, 1_000_000)])
    assert name.startswith(MEMORY)


def fill_up(monkeypatch: pytest.MonkeyPatch, folders: Folders, *full: str) -> None:
    """Let writes to some folders fail as on a file system that is full."""
    real = os.pwrite

    def pwrite(file: int, piece: memoryview, offset: int) -> int:
        path = os.readlink(f"/proc/self/fd/{file}")
        if offset and any(path.startswith(f"{getattr(folders, kind)}/{kind}") for kind in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, piece, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_full_memory_leaves_nothing_and_disk_is_used(
    writer: SegmentWriter,
    segments: Segments,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_up(monkeypatch, folders, MEMORY)
    name, _ = writer.write([data(1), data(2)])
    assert name.startswith(DISK)
    assert os.listdir(folders.memory) == []
    assert segments.used == 0


def test_error_says_that_everything_is_full(
    writer: SegmentWriter, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_up(monkeypatch, folders, MEMORY, DISK)
    monkeypatch.setattr(writer_module, "WAIT_SECONDS", 0.1)
    with pytest.raises(OSError, match="shared memory and the temporary folder are full"):
        writer.write([data(1), data(2)])
    assert os.listdir(folders.memory) == []
    assert os.listdir(folders.disk) == ["account"]


def test_waits_for_room(
    writer: SegmentWriter, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    fill_up(monkeypatch, folders, MEMORY, DISK)

    def free_something(seconds: float) -> None:
        monkeypatch.setattr(os, "pwrite", real)

    monkeypatch.setattr(time, "sleep", free_something)
    name, _ = writer.write([data(1), data(2)])
    assert name.startswith(MEMORY)
