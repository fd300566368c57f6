"""Private mappings of segments: nothing is copied but the pages that somebody writes to."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable

from rhapsody.backends.data.segments import KEPT_BYTES, MEMORY, Segments, Span

__all__ = ["Mappings"]

PAGEMAP = "/proc/self/pagemap"
"""Tells for each page whether this process has a copy of its own. Linux only."""

ENTRY_BYTES = 8

PRESENT, SWAPPED, OF_FILE = 0x80, 0x40, 0x20
"""Bits 63, 62 and 61 of an entry, in its last byte: https://docs.kernel.org/admin-guide/mm/pagemap.html"""

IN_MEMORY = bytes(flags for flags in range(256) if flags & PRESENT)
"""The last bytes of entries of pages in memory."""

COPIES = bytes(
    flags for flags in range(256) if flags & SWAPPED or (flags & PRESENT and not flags & OF_FILE)
)
"""The same of copies: a page of the file is never swapped as a page of the mapping."""

PAGES_AT_ONCE = 1 << 20

MOST_MAPPINGS = 16_384
"""Maximum number of mappings in use. Linux allows a process 65,530 of all kinds by default, and
without them no thread starts: https://docs.kernel.org/admin-guide/sysctl/vm.html#max-map-count"""

KEPT_MAPPINGS = 4
"""Maximum number of mappings that are kept after their end."""

LENGTH_UNIT = 1 << 20
"""The lengths of mappings are multiples of this, so that few types of arrays are made."""

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
    """A private mapping of a whole segment.

    Attributes:
        memory: Ends the mapping with its own end.
        resident: Bytes in memory, when it was kept.
        spared: Whether the last trim left it, and it has not been used since.
    """

    __slots__ = (
        "length",
        "memory",
        "reference",
        "resident",
        "reusable",
        "segment",
        "spared",
        "start",
    )

    def __init__(self, segment: str, memory: mmap.mmap, start: int) -> None:
        self.segment = segment
        self.memory = memory
        self.start = start
        self.length = len(memory)
        self.reusable = True
        self.resident = 0
        self.spared = False
        self.reference: weakref.ref[ctypes.Array[ctypes.c_ubyte]] | None = None


class Mappings:
    """The private mappings of one process, of the segments of one backend.

    A few mappings are kept after their end, for the next data in the same segment: entering each
    page into a mapping takes longer than reading the page. A page that was not written to shows
    what the file contains, also if it is written anew. So a mapping is kept only if none was. It
    keeps no memory from being freed, because unused segments are truncated when they are removed.

    Args:
        segments: The segments.
        on_end: Called with a segment's name when a mapping of it has ended, and with whether the
            segment may be written again: a forked child may still see it. May be called in any
            thread and at any time, also during garbage collection, so it must not take a lock.
        kept_bytes: Maximum size of the mappings that are kept.
    """

    def __init__(
        self,
        segments: Segments,
        on_end: Callable[[str, bool], None],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._kept_bytes = kept_bytes
        self._segments = segments
        self._on_end = on_end
        self._live: dict[int, _Mapping] = {}
        self._kept: deque[_Mapping] = deque()  # each method call is one step for other threads
        self._closed = False
        self._pid = os.getpid()
        _instances.add(self)

    def map(self, segment: str) -> memoryview:
        """Map a segment.

        Returns:
            A writable view of it. What is written to it is seen by this process only. The mapping
            ends with the last object that uses it.

        Raises:
            OSError: The segment does not exist, or cannot be mapped.
        """
        file = self._segments.open(segment)
        try:
            size = os.fstat(file).st_size
            mapping = self._take(segment)
            if mapping is None:
                mapping = _Mapping(segment, *_map_file(file, -(-size // LENGTH_UNIT) * LENGTH_UNIT))
        finally:
            os.close(file)
        user = (ctypes.c_ubyte * mapping.length).from_buffer(mapping.memory)
        # Otherwise the collector would note the end of a user in a cycle before it calls the
        # finalizers, which may read the data.
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(user))
        mapping.reference = weakref.ref(user, functools.partial(self._end, mapping))
        self._live[id(mapping)] = mapping
        return memoryview(user).cast("B")[:size]

    @property
    def are_too_many(self) -> bool:
        """Whether segments should be read instead of mapped."""
        return len(self._live) >= MOST_MAPPINGS

    def _take(self, segment: str) -> _Mapping | None:
        for mapping in list(self._kept):
            if mapping.segment == segment and self._remove(mapping):
                return mapping
        return None

    def _remove(self, mapping: _Mapping) -> bool:
        try:
            self._kept.remove(mapping)
        except ValueError:  # another thread has taken it
            return False
        return True

    def _end(self, mapping: _Mapping, _: object) -> None:
        self._live.pop(id(mapping), None)
        if os.getpid() == self._pid:
            self._keep(mapping)
            self._on_end(mapping.segment, mapping.reusable)

    def _keep(self, mapping: _Mapping) -> None:
        if (
            not mapping.reusable
            or mapping.length > self._kept_bytes
            or not mapping.segment.startswith(MEMORY)
            or any(mapping.segment == kept.segment for kept in list(self._kept))
        ):
            return
        resident = _unchanged_bytes(mapping.start, mapping.length)
        if resident is None:
            return
        mapping.resident = resident
        mapping.spared = False
        self._kept.append(mapping)
        while self._closed or not self._are_few():
            try:
                self._kept.popleft()
            except IndexError:
                return

    def _are_few(self) -> bool:
        kept = list(self._kept)
        return len(kept) <= KEPT_MAPPINGS and sum(each.length for each in kept) <= self._kept_bytes

    def trim(self) -> None:
        """End the mappings that nobody has used since the last call."""
        for mapping in list(self._kept):
            if mapping.spared:
                self._remove(mapping)
            mapping.spared = True

    @property
    def kept_bytes(self) -> int:
        """Resident memory of the mappings that nobody uses."""
        return sum(mapping.resident for mapping in list(self._kept))

    def close(self) -> None:
        """End the mappings that nobody uses, and from now on each with its last user."""
        self._closed = True
        self._kept.clear()

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
                if _unchanged_bytes(start, buffer.nbytes) is None:
                    return None
                return Span(mapping.segment, inside, buffer.nbytes, False)
        return None

    def before_fork(self) -> None:
        """Note that a child will see what is mapped now."""
        for mapping in list(self._live.values()):
            mapping.reusable = False


def _map_file(file: int, length: int) -> tuple[mmap.mmap, int]:
    # A `mmap` object of a file keeps a file descriptor for as long as it lives (until Python 3.13),
    # and there may be more results than descriptors. So the file is mapped over anonymous memory.
    memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    flags = mmap.MAP_PRIVATE | FIXED | NO_RESERVE
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    result = _libc.mmap(start, length, protection, flags, file, 0)
    if result != start:
        code = ctypes.get_errno() or errno.ENOMEM
        raise OSError(code, f"a segment cannot be mapped: {os.strerror(code)}")
    return memory, start


def _unchanged_bytes(start: int, length: int) -> int | None:
    """Return how much of a private mapping is in memory, if no page of it was written to.

    Returns None also if that is not known.
    """
    if sys.platform != "linux":
        return None
    first, end = start // mmap.PAGESIZE, -(-(start + length) // mmap.PAGESIZE)
    present = 0
    try:
        file = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)  # anew: after a fork it is another
    except OSError:
        return None
    try:
        for page in range(first, end, PAGES_AT_ONCE):
            pages = min(end - page, PAGES_AT_ONCE)
            data = os.pread(file, pages * ENTRY_BYTES, page * ENTRY_BYTES)
            if len(data) != pages * ENTRY_BYTES:
                return None
            flags = data[ENTRY_BYTES - 1 :: ENTRY_BYTES]
            if len(flags.translate(None, COPIES)) < pages:
                return None
            present += pages - len(flags.translate(None, IN_MEMORY))
    except OSError:
        return None
    finally:
        os.close(file)
    return present * mmap.PAGESIZE


_instances: weakref.WeakSet[Mappings] = weakref.WeakSet()


def _before_fork() -> None:
    for mappings in tuple(_instances):
        mappings.before_fork()


os.register_at_fork(before=_before_fork)
