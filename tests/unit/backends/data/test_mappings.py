"""Private mappings."""

import ctypes
import gc
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from rhapsody.backends.data import mappings as mappings_module
from rhapsody.backends.data.mappings import Mappings
from rhapsody.backends.data.segments import DISK, MEMORY, Segments, Span

PAGES = 8
SIZE = PAGES * mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the page map of Linux")


def create(segments: Segments, kind: str = MEMORY) -> str:
    """Create a segment whose byte at each place is the number of its page."""
    created = segments.create(kind, 1, SIZE)
    assert created is not None
    os.write(created[1], b"".join(bytes([page]) * mmap.PAGESIZE for page in range(PAGES)))
    os.close(created[1])
    return created[0]


@pytest.fixture
def name(segments: Segments) -> str:
    return create(segments)


@pytest.fixture
def ended() -> list[tuple[str, bool]]:
    """What `on_end` was called with."""
    return []


@pytest.fixture
def mapped(segments: Segments, ended: list[tuple[str, bool]]) -> Mappings:
    return Mappings(segments, lambda *end: ended.append(end))


def test_mapping_shows_the_segment(mapped: Mappings, segments: Segments, name: str) -> None:
    with open(segments.path(name), "rb") as file:
        assert bytes(mapped.map(name)) == file.read()


def test_what_one_mapping_writes_no_other_sees(mapped: Mappings, name: str) -> None:
    one, other = mapped.map(name), mapped.map(name)
    one[0] = 99
    assert other[0] == 0
    assert mapped.map(name)[0] == 0


def test_mapping_ends_with_its_last_view(
    mapped: Mappings, name: str, ended: list[tuple[str, bool]]
) -> None:
    view = mapped.map(name)
    part = view[10:20]
    del view
    assert ended == []
    del part
    assert ended == [(name, True)]


def test_mapping_outlives_its_segment(mapped: Mappings, segments: Segments, name: str) -> None:
    view = mapped.map(name)
    segments.remove(name)
    assert view[-1] == PAGES - 1


def test_mapping_uses_no_file_descriptor(mapped: Mappings, name: str) -> None:
    before = len(os.listdir("/dev/fd"))
    views = [mapped.map(name) for _ in range(20)]
    assert len(os.listdir("/dev/fd")) == before
    del views


def test_missing_segment_is_an_error(mapped: Mappings) -> None:
    with pytest.raises(FileNotFoundError):
        mapped.map("memory-1-99")


@linux
def test_unchanged_part_is_found(mapped: Mappings, name: str) -> None:
    view = mapped.map(name)
    assert sum(view) > 0  # a page that was read is not a copy
    assert mapped.find(view[7:107]) == Span(name, 7, 100, False)


@linux
def test_changed_page_is_not_found(mapped: Mappings, name: str) -> None:
    view = mapped.map(name)
    view[3 * mmap.PAGESIZE] = 1
    assert mapped.find(view) is None
    assert mapped.find(view[: 3 * mmap.PAGESIZE]) is not None
    assert mapped.find(view[4 * mmap.PAGESIZE :]) is not None


def test_other_memory_is_not_found(mapped: Mappings, name: str) -> None:
    view = mapped.map(name)
    assert mapped.find(memoryview(bytearray(SIZE))) is None
    assert mapped.find(memoryview(bytes(view))) is None


def test_nothing_is_found_without_the_page_map(
    mapped: Mappings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = mapped.map(name)
    monkeypatch.setattr(mappings_module, "PAGEMAP", "/nowhere")
    assert mapped.find(view) is None


def test_segment_that_a_child_sees_is_not_written_again(
    mapped: Mappings, name: str, ended: list[tuple[str, bool]]
) -> None:
    view = mapped.map(name)
    child = os.fork()
    if child == 0:
        del view  # reports nothing: the child is no user of the store
        os._exit(len(ended))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del view
    later = mapped.map(name)
    del later
    assert ended == [(name, False), (name, True)]


def test_finalizer_in_a_cycle_may_read_the_data(
    mapped: Mappings, name: str, ended: list[tuple[str, bool]]
) -> None:
    seen = []

    class Holder:
        def __init__(self, view: memoryview) -> None:
            self.view = view
            self.cycle = self

        def __del__(self) -> None:
            seen.append((self.view[-1], list(ended)))

    Holder(mapped.map(name))
    gc.collect()
    assert seen == [(PAGES - 1, [])]
    assert ended == [(name, True)]


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def fill(segments: Segments, name: str, byte: int) -> None:
    """Write a segment anew, as its writer does."""
    file = segments.open_to_write(name)
    with mmap.mmap(file, SIZE) as memory:
        memory[:] = bytes([byte]) * SIZE
    os.close(file)


def use(mapped: Mappings, name: str, byte: int | None = None) -> int:
    """Map a segment, read it, perhaps write into it, and return the address."""
    view = mapped.map(name)
    sum(view)
    if byte is not None:
        view[mmap.PAGESIZE] = byte
    return address(view)


@linux
def test_kept_mapping_is_used_again_and_shows_new_data(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    first = use(mapped, name)
    for byte in (50, 60):
        fill(segments, name, byte)
        view = mapped.map(name)
        assert address(view) == first
        assert bytes(view) == bytes([byte]) * SIZE
        del view


@linux
def test_kept_bytes_are_those_in_memory(mapped: Mappings, name: str) -> None:
    assert mapped.kept_bytes == 0
    use(mapped, name)
    assert mapped.kept_bytes == SIZE
    view = mapped.map(name)
    assert mapped.kept_bytes == 0
    del view


@linux
def test_mapping_that_was_written_to_is_not_kept(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    use(mapped, name)
    use(mapped, name, 99)
    assert not mapped._kept
    fill(segments, name, 50)
    assert bytes(mapped.map(name)) == bytes([50]) * SIZE


@linux
def test_only_mappings_of_memory_without_children_are_kept(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    use(mapped, create(segments, DISK))
    view = mapped.map(name)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    del view
    assert not mapped._kept


@linux
def test_few_mappings_are_kept_and_one_of_each_segment(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    views = [mapped.map(name), mapped.map(name)]
    views.clear()
    assert len(mapped._kept) == 1
    for _ in range(mappings_module.KEPT_MAPPINGS):
        use(mapped, create(segments))
    assert len(mapped._kept) == mappings_module.KEPT_MAPPINGS
    assert name not in [kept.segment for kept in mapped._kept]


@linux
def test_kept_bytes_are_bounded(
    mapped: Mappings, segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_kept_bytes", 2 * mappings_module.LENGTH_UNIT)
    for _ in range(3):
        use(mapped, create(segments))
    assert len(mapped._kept) == 2
    monkeypatch.setattr(mapped, "_kept_bytes", mappings_module.LENGTH_UNIT - 1)
    use(mapped, create(segments))
    assert len(mapped._kept) == 2


@linux
def test_mapping_that_was_not_used_between_two_trims_ends(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    use(mapped, create(segments))
    for _ in range(3):
        use(mapped, name)
        mapped.trim()
    assert [kept.segment for kept in mapped._kept] == [name]
    mapped.trim()
    assert not mapped._kept


@linux
def test_nothing_is_kept_after_the_close(mapped: Mappings, segments: Segments, name: str) -> None:
    view = mapped.map(name)
    use(mapped, create(segments))
    mapped.close()
    assert not mapped._kept
    assert view[-1] == PAGES - 1
    del view
    assert not mapped._kept


@linux
def test_kept_mapping_of_a_removed_segment_holds_no_memory(
    mapped: Mappings, segments: Segments, name: str
) -> None:
    use(mapped, name)
    file = segments.open(name)
    segments.remove(name, unused=True)
    assert os.fstat(file).st_size == 0
    os.close(file)
    with pytest.raises(FileNotFoundError):
        mapped.map(name)


@linux
def test_threads_share_the_kept_mappings(mapped: Mappings, segments: Segments) -> None:
    names = [create(segments) for _ in range(6)]

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(300):
            view = mapped.map(random.choice(names))
            assert view[-1] == PAGES - 1
            if random.random() < 0.3:
                view[-1] = 99
            del view

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(mapped._kept) <= mappings_module.KEPT_MAPPINGS
    assert len({kept.start for kept in mapped._kept}) == len(mapped._kept)
