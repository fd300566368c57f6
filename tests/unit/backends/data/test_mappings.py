"""Private mappings."""

import gc
import mmap
import os
import sys

import pytest

from rhapsody.backends.data import mappings as mappings_module
from rhapsody.backends.data.mappings import Mappings
from rhapsody.backends.data.segments import MEMORY, Segments, Span

PAGES = 8
SIZE = PAGES * mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the page map of Linux")


@pytest.fixture
def name(segments: Segments) -> str:
    """A segment whose byte at each place is the number of its page."""
    created = segments.create(MEMORY, 1, SIZE)
    assert created is not None
    os.write(created[1], b"".join(bytes([page]) * mmap.PAGESIZE for page in range(PAGES)))
    os.close(created[1])
    return created[0]


@pytest.fixture
def ended() -> list[tuple[str, bool]]:
    """What `on_end` was called with."""
    return []


@pytest.fixture
def mapped(segments: Segments, ended: list[tuple[str, bool]]) -> Mappings:
    return Mappings(segments, lambda *end: ended.append(end))


def test_mapping_shows_the_part(mapped: Mappings, name: str) -> None:
    view, first = mapped.map(name, 2 * mmap.PAGESIZE + 5, 10)
    assert first == 2 * mmap.PAGESIZE
    assert bytes(view) == bytes([2]) * 15


def test_what_one_mapping_writes_no_other_sees(mapped: Mappings, name: str) -> None:
    one, other = (mapped.map(name, 0, SIZE)[0] for _ in range(2))
    one[0] = 99
    assert other[0] == 0
    assert mapped.map(name, 0, SIZE)[0][0] == 0


def test_mapping_ends_with_its_last_view(
    mapped: Mappings, name: str, ended: list[tuple[str, bool]]
) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    part = view[10:20]
    del view
    assert ended == []
    del part
    assert ended == [(name, True)]


def test_mapping_outlives_its_segment(mapped: Mappings, segments: Segments, name: str) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    segments.remove(name)
    assert view[-1] == PAGES - 1


def test_mapping_uses_no_file_descriptor(mapped: Mappings, name: str) -> None:
    before = len(os.listdir("/dev/fd"))
    views = [mapped.map(name, 0, SIZE) for _ in range(20)]
    assert len(os.listdir("/dev/fd")) == before
    del views


def test_missing_segment_is_an_error(mapped: Mappings) -> None:
    with pytest.raises(FileNotFoundError):
        mapped.map("memory-1-99", 0, 10)


@linux
def test_unchanged_part_is_found(mapped: Mappings, name: str) -> None:
    view, first = mapped.map(name, mmap.PAGESIZE, SIZE - mmap.PAGESIZE)
    assert sum(view) > 0  # a page that was read is not a copy
    assert mapped.find(view[7:107]) == Span(name, first + 7, 100, False)


@linux
def test_changed_page_is_not_found(mapped: Mappings, name: str) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    view[3 * mmap.PAGESIZE] = 1
    assert mapped.find(view) is None
    assert mapped.find(view[: 3 * mmap.PAGESIZE]) is not None
    assert mapped.find(view[4 * mmap.PAGESIZE :]) is not None


def test_other_memory_is_not_found(mapped: Mappings, name: str) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    assert mapped.find(memoryview(bytearray(SIZE))) is None
    assert mapped.find(memoryview(bytes(view))) is None


def test_nothing_is_found_without_the_page_map(
    mapped: Mappings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    monkeypatch.setattr(mappings_module, "PAGEMAP", "/nowhere")
    assert mapped.find(view) is None


def test_segment_that_a_child_sees_is_not_written_again(
    mapped: Mappings, name: str, ended: list[tuple[str, bool]]
) -> None:
    view, _ = mapped.map(name, 0, SIZE)
    child = os.fork()
    if child == 0:
        del view  # reports nothing: the child is no user of the store
        os._exit(len(ended))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del view
    later, _ = mapped.map(name, 0, SIZE)
    del later
    assert ended == [(name, False), (name, True)]


def test_finalizer_in_a_cycle_may_read_the_data(mapped: Mappings, name: str) -> None:
    seen = []

    class Holder:
        def __init__(self, view: memoryview) -> None:
            self.view = view
            self.cycle = self

        def __del__(self) -> None:
            seen.append(self.view[-1])

    Holder(mapped.map(name, 0, SIZE)[0])
    gc.collect()
    assert seen == [PAGES - 1]
