"""Private mappings of segments: nothing is copied but the pages that somebody writes to."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Callable

from rhapsody.backends.data.segments import Segments, Span

__all__ = ["Mappings"]

PAGEMAP = "/proc/self/pagemap"
"""Tells for each page whether this process has a copy of its own. Linux only."""

ENTRY_BYTES = 8

PRESENT, SWAPPED, OF_FILE = 0x80, 0x40, 0x20
"""Bits 63, 62 and 61 of an entry, in its last byte: https://docs.kernel.org/admin-guide/mm/pagemap.html"""

PAGES_AT_ONCE = 1 << 20

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
FIXED = 0x10
"""MAP_FIXED, which is the same on Linux and macOS."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
]


class _Mapping:
    __slots__ = ("length", "offset", "reference", "reusable", "segment", "start")

    def __init__(self, segment: str, start: int, offset: int, length: int) -> None:
        self.segment = segment
        self.start = start
        self.offset = offset
        self.length = length
        self.reusable = True
        self.reference: weakref.ref[mmap.mmap] | None = None


class Mappings:
    """The private mappings of one process, of the segments of one backend.

    Args:
        segments: The segments.
        on_end: Called with a segment's name when a mapping of it has ended, and with whether the
            segment may be written again: a forked child may still see it. May be called in any
            thread and at any time, also during garbage collection, so it must not take a lock.
    """

    def __init__(self, segments: Segments, on_end: Callable[[str, bool], None]) -> None:
        self._segments = segments
        self._on_end = on_end
        self._live: dict[int, _Mapping] = {}
        self._pid = os.getpid()
        _instances.add(self)

    def map(self, segment: str, offset: int, length: int) -> tuple[memoryview, int]:
        """Map a part of a segment.

        Args:
            segment: The segment's name.
            offset: Where the part begins, in bytes.
            length: The length of the part in bytes.

        Returns:
            A writable view, and the offset in the segment at which it begins. What is written to it
            is seen by this process only. The mapping ends with the last object that uses it.

        Raises:
            OSError: The segment does not exist, or cannot be mapped.
        """
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        length += offset - first
        file = self._segments.open(segment)
        try:
            memory, start = _map_file(file, first, length)
        finally:
            os.close(file)
        mapping = _Mapping(segment, start, first, length)
        self._live[id(mapping)] = mapping
        mapping.reference = weakref.ref(memory, functools.partial(self._end, mapping))
        return memoryview(memory), first

    def _end(self, mapping: _Mapping, _: object) -> None:
        self._live.pop(id(mapping), None)
        if os.getpid() == self._pid:
            self._on_end(mapping.segment, mapping.reusable)

    def find(self, buffer: memoryview) -> Span | None:
        """Return the part of a segment that a buffer shows, if it lies there unchanged.

        Returns None also where this cannot be found out.
        """
        if buffer.readonly or os.getpid() != self._pid:
            return None
        try:
            start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        except (TypeError, ValueError):
            return None
        for mapping in list(self._live.values()):  # in one step: mappings end at any time
            inside = start - mapping.start
            if inside >= 0 and inside + buffer.nbytes <= mapping.length:
                if not _is_unchanged(start, buffer.nbytes):
                    return None
                return Span(mapping.segment, mapping.offset + inside, buffer.nbytes, False)
        return None

    def before_fork(self) -> None:
        """Note that a child will see what is mapped now."""
        for mapping in list(self._live.values()):
            mapping.reusable = False


def _map_file(file: int, offset: int, length: int) -> tuple[mmap.mmap, int]:
    # A `mmap` object of a file keeps a file descriptor for as long as it lives (until Python 3.13),
    # and there may be more results than descriptors. So the file is mapped over anonymous memory.
    memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    flags = mmap.MAP_PRIVATE | FIXED | NO_RESERVE
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    result = _libc.mmap(start, length, protection, flags, file, offset)
    if result != start:
        code = ctypes.get_errno() or errno.ENOMEM
        raise OSError(code, f"a segment cannot be mapped: {os.strerror(code)}")
    return memory, start


def _is_unchanged(start: int, length: int) -> bool:
    """Return whether no page of a private mapping was written to; False if that is not known."""
    if sys.platform != "linux":
        return False
    first, end = start // mmap.PAGESIZE, -(-(start + length) // mmap.PAGESIZE)
    try:
        file = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)  # anew: after a fork it is another
    except OSError:
        return False
    try:
        for page in range(first, end, PAGES_AT_ONCE):
            pages = min(end - page, PAGES_AT_ONCE)
            data = os.pread(file, pages * ENTRY_BYTES, page * ENTRY_BYTES)
            if len(data) != pages * ENTRY_BYTES:
                return False
            if any(map(_is_copy, set(data[ENTRY_BYTES - 1 :: ENTRY_BYTES]))):
                return False
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _is_copy(flags: int) -> bool:
    # A page of the file is never swapped as a page of the mapping.
    return bool(flags & SWAPPED or (flags & PRESENT and not flags & OF_FILE))


_instances: weakref.WeakSet[Mappings] = weakref.WeakSet()


def _before_fork() -> None:
    for mappings in tuple(_instances):
        mappings.before_fork()


os.register_at_fork(before=_before_fork)
