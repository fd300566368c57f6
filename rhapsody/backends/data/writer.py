"""Writes data into segments, if possible into one that was used before: its memory is there."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Sequence
from typing import TypeAlias

from rhapsody.backends.data.segments import DISK, KEPT_BYTES, MEMORY, Segments

__all__ = ["SegmentWriter"]

ALIGNMENT = 64
"""Bytes; vector instructions read aligned arrays faster."""

CHUNK = 8 << 20
"""Bytes copied while other threads wait; about a millisecond."""

TWO_THREADS_BYTES = 16 << 20
"""Size of writable data that two threads copy."""

WRITE_BYTES = 256 << 20
"""Bytes of one system call; one call writes 2 GiB at most."""

KEPT_SEGMENTS = 2
"""Maximum number of unused segments that are kept."""

OVERSIZE = 4
"""How many times larger than the data a segment that is used again may be."""

WAIT_SECONDS = 30.0
"""How long to wait for room if memory and disk are full."""

RETRY_SECONDS = 0.05

POPULATE = getattr(mmap, "MAP_POPULATE", 0)
"""The pages are there; they are entered into the mapping at once instead of one by one."""

Pieces: TypeAlias = Sequence[tuple[int, memoryview]]
"""Data, and the offset in the segment at which each piece of it belongs."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})


class _Kept:
    """An unused segment, mapped when it is used for the second time.

    Attributes:
        spared: Whether the last trim left it, and it has not been used since.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.spared = False
        self.memory: mmap.mmap | None = None

    @property
    def mapped_bytes(self) -> int:
        return 0 if self.memory is None else self.size


class SegmentWriter:
    """Writes the segments of one process. Thread-safe.

    Args:
        segments: The segments.
        number: The number of this process.
        kept_bytes: Maximum size of the unused segments that are kept.

    Attributes:
        mapped_bytes: Resident memory of this process in segments.
    """

    def __init__(self, segments: Segments, number: int, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._segments = segments
        self._number = number
        self._lock = threading.Lock()
        self._used: dict[str, _Kept] = {}
        self._kept: list[_Kept] = []
        self.mapped_bytes = 0

    def write(
        self, arrays: Sequence[memoryview], stream: Sequence[memoryview] = ()
    ) -> tuple[str, list[int]]:
        """Write data into a segment.

        Args:
            arrays: Each begins at a multiple of `ALIGNMENT`.
            stream: Pieces that follow one another without gaps.

        Returns:
            The segment's name, and the offsets in bytes of each array and of the stream.

        Raises:
            OSError: Memory and disk are full, or the segment cannot be written.
        """
        offsets, size = [], 0
        for array in arrays:
            offsets.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        pieces = list(zip(offsets, arrays, strict=True))
        offsets.append(size)
        for piece in stream:
            pieces.append((size, piece))
            size += piece.nbytes
        kept = self._take(size)
        if kept is not None:
            try:
                self._fill(kept, pieces)
            except BaseException:
                with self._lock:
                    self.mapped_bytes -= kept.mapped_bytes
                self._segments.remove(kept.name)  # a thread may still write into it
                raise
        else:
            kept = self._write_new(pieces, size)
        with self._lock:
            self._used[kept.name] = kept
        return kept.name, offsets

    def take_back(self, name: str, reusable: bool) -> None:
        """Take a segment back that nobody uses; keep it for later data, or remove it."""
        with self._lock:
            kept = self._used.pop(name, None)
            if kept is not None and reusable and self._may_keep(kept):
                kept.spared = False
                self._kept.append(kept)
                return
            if kept is not None:
                self.mapped_bytes -= kept.mapped_bytes
        self._segments.remove(name, unused=reusable)

    def _may_keep(self, kept: _Kept) -> bool:
        size = kept.size + sum(other.size for other in self._kept)
        few = len(self._kept) < KEPT_SEGMENTS and size <= self._kept_bytes
        return few and kept.name.startswith(MEMORY)

    def trim(self) -> None:
        """Remove the segments that nobody has used since the last call."""
        with self._lock:
            old = [kept for kept in self._kept if kept.spared]
            self._kept = [kept for kept in self._kept if not kept.spared]
            for kept in self._kept:
                kept.spared = True
        self._remove(old)

    def _make_room(self) -> None:
        with self._lock:
            unused, self._kept = self._kept, []
        self._remove(unused)

    def _remove(self, unused: Sequence[_Kept]) -> None:
        for kept in unused:
            with self._lock:
                self.mapped_bytes -= kept.mapped_bytes
            self._segments.remove(kept.name, unused=True)

    def _take(self, size: int) -> _Kept | None:
        with self._lock:
            fitting = [each for each in self._kept if size <= each.size <= OVERSIZE * size]
            if not fitting:
                return None
            kept = min(fitting, key=lambda each: each.size)
            self._kept.remove(kept)
        return kept

    def _fill(self, kept: _Kept, pieces: Pieces) -> None:
        if kept.memory is None:
            file = self._segments.open_to_write(kept.name)
            try:
                kept.memory = mmap.mmap(file, kept.size, mmap.MAP_SHARED | POPULATE)
            finally:
                os.close(file)
            with self._lock:
                self.mapped_bytes += kept.size
        with memoryview(kept.memory) as memory:
            for offset, piece in pieces:
                _copy(memory[offset : offset + piece.nbytes], piece)

    def _write_new(self, pieces: Pieces, size: int) -> _Kept:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            for kind in (MEMORY, DISK):
                name = self._write_to(kind, pieces, size)
                if name is not None:
                    return _Kept(name, size)
            if time.monotonic() > deadline:
                raise OSError(errno.ENOSPC, "shared memory and the temporary folder are full")
            time.sleep(RETRY_SECONDS)  # nothing tells when another process frees disk space

    def _write_to(self, kind: str, pieces: Pieces, size: int) -> str | None:
        """Write a new segment; None if there is no room."""
        try:
            created = self._segments.create(kind, self._number, size)
            if created is None and self._kept:
                self._make_room()
                created = self._segments.create(kind, self._number, size)
        except OSError as error:
            if error.errno in FULL:
                return None
            raise
        if created is None:
            return None
        name, file = created
        try:
            for offset, piece in pieces:
                _write(file, piece, offset)
        except BaseException as error:
            self._segments.remove(name)
            if isinstance(error, OSError) and error.errno in FULL:
                return None
            raise
        finally:
            os.close(file)
        return name


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy data; large data in two threads, since one does not use the bandwidth of the memory."""
    if source.readonly or source.nbytes < TWO_THREADS_BYTES:
        for begin in range(0, source.nbytes, CHUNK):
            target[begin : begin + CHUNK] = source[begin : begin + CHUNK]
        return
    half = source.nbytes // 2
    other = threading.Thread(target=_move, args=(target[half:], source[half:]))
    try:
        other.start()
    except RuntimeError:  # the limit of threads
        _move(target, source)
        return
    try:
        _move(target[:half], source[:half])
    finally:
        other.join()


def _move(target: memoryview, source: memoryview) -> None:
    # Unlike an assignment, this lets other threads run.
    to, origin = (ctypes.c_char.from_buffer(view) for view in (target, source))
    ctypes.memmove(ctypes.addressof(to), ctypes.addressof(origin), source.nbytes)


def _write(file: int, piece: memoryview, offset: int) -> None:
    # Not through a mapping: a full file system would end the process with a signal.
    done = 0
    while done < piece.nbytes:
        done += os.pwrite(file, piece[done : done + WRITE_BYTES], offset + done)
