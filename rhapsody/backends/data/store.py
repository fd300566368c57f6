"""The data store of a backend: its segments on this node, owned by the program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rhapsody.backends.core.service_loop import in_thread
from rhapsody.backends.data.ledger import PROGRAM, Ledger
from rhapsody.backends.data.packing import MakePickler, Packed, Packer
from rhapsody.backends.data.segments import Folders, Segments, writer_of
from rhapsody.backends.data.writer import SegmentWriter
from rhapsody.scratch import Scratch

__all__ = ["DataStore", "checked_memory_limit"]

SHARED_MEMORY = "/dev/shm"

KEEP_SECONDS = 1.0
"""How long segments that nobody uses are kept for later data, or up to twice as long."""

TRIMS = 2
"""How often a process is told to trim: it removes what it has not used since the time before."""


def checked_memory_limit(value: int | None) -> int | None:
    """Return a limit of memory that is a number of bytes, or None.

    Raises:
        ValueError: It is something else.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"memory_limit must be a number of bytes or None, got {value!r}")
    return value


class DataStore:
    """Counts, frees and bounds the segments of a backend; belongs to a loop.

    Results and arguments are loaded and packed in other threads.

    Args:
        loop: The loop.
        memory_limit: Maximum number of bytes in shared memory; more goes to the temporary folder.
            None: half of the shared memory of this machine.
        give_back: Called on the loop to tell a worker that nobody uses a segment that it wrote.
            Args: the worker's number, and the segment's name and whether it may be written again.
        trim: Called on the loop to tell a worker to remove the segments that it has not used since
            the last time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory_limit: int | None,
        give_back: Callable[[int, str, bool], None],
        trim: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._give_back = give_back
        self._trim = trim
        self._memory = _memory_folder()
        self._disk = Scratch("data")
        limit = _default_limit(self._memory.path) if memory_limit is None else memory_limit
        self.folders = Folders(str(self._memory.path), str(self._disk.path), limit)
        self._segments = Segments(self.folders)
        self._writer = SegmentWriter(self._segments, PROGRAM)
        self._packer = Packer(self._segments, self._writer, self._on_unmapped)
        self._ledger = Ledger(self._on_unused)
        # Removing a large file takes milliseconds.
        self._remover = ThreadPoolExecutor(1, "rhapsody-data")
        self._to_trim: dict[int, int] = {}
        self._trim_timer: asyncio.TimerHandle | None = None
        self._closed = False

    # -- in any thread ----------------------------------------------------------------------------

    def pack(self, value: Any, worker: int) -> bytes | Packed:
        """Pickle a value for a worker; see `Packer.pack`.

        The worker uses its segments until it has said that it does not, or has ended.
        """
        packed = self._packer.pack(value)
        if not isinstance(packed, bytes):
            for segment in packed.segments:
                self._call(self._ledger.hold, segment, worker)
        return packed

    def pack_for_call(self, value: Any, make_pickler: MakePickler) -> bytes | Packed:
        """Pickle a value for a call; see `Packer.pack`. The caller has the call hold it."""
        return self._packer.pack(value, make_pickler)

    def load(self, packed: Packed) -> Any:
        """Load a worker's value; see `Packer.load`."""
        for segment in packed.segments:
            self._call(self._ledger.hold, segment, PROGRAM)
        return self.load_held(packed)

    def load_held(self, packed: Packed) -> Any:
        """Load a value whose segments the program holds already; see `Packer.load`."""
        return self._packer.load(packed)

    def _on_unmapped(self, segment: str, reusable: bool) -> None:
        self._call(self.drop, PROGRAM, ((segment, reusable),))

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        # In the order of the calls, from all threads. It takes no lock, so that it may be called
        # during garbage collection.
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    def admit(self, worker: int) -> None:
        """Count a new worker, before it gets its first value."""
        self._call(self.admit_now, worker)

    # -- users: on the loop -----------------------------------------------------------------------

    def admit_now(self, worker: int) -> None:
        """Count a new worker from now on."""
        self._ledger.admit(worker)

    def hold(self, user: int, segments: Iterable[str]) -> None:
        """Note that a process, or a call, uses segments.

        Args:
            user: The number of a worker that was admitted; or that of a call, below zero.
            segments: Names of segments.
        """
        if user < PROGRAM:
            self._ledger.admit(user)
        for segment in segments:
            self._ledger.hold(segment, user)

    def release(self, call: int, segments: Iterable[str], reusable: bool = True) -> None:
        """Note that a call uses no segments any more; see `Ledger.release`."""
        self._ledger.release(call, segments, reusable)

    def drop(self, process: int, segments: Iterable[tuple[str, bool]]) -> None:
        """Note that a process uses segments no longer, and whether each may be written again."""
        for segment, reusable in segments:
            self._ledger.drop(segment, process, reusable)
        if self._ledger.is_admitted(process):
            self._trim_later(process)  # it may have kept its mappings

    def forget(self, worker: int) -> None:
        """Note that a worker has ended, and remove what it has left."""
        if self._ledger.is_admitted(worker):
            self._ledger.forget(worker)
            self._to_trim.pop(worker, None)
            known = self._ledger.segments
            self._in_remover(self._segments.remove_all_of, worker, known)

    def _on_unused(self, segment: str, reusable: bool) -> None:
        writer = writer_of(segment)
        if writer == PROGRAM:
            self._in_remover(self._writer.take_back, segment, reusable)
        elif self._ledger.is_admitted(writer):
            self._give_back(writer, segment, reusable)
        else:
            self._in_remover(self._segments.remove, segment, reusable)
            return
        self._trim_later(writer)

    def _trim_later(self, process: int) -> None:
        self._to_trim[process] = TRIMS
        self._start_trim_timer()

    def _start_trim_timer(self) -> None:
        if self._trim_timer is None and self._to_trim and not self._closed:
            self._trim_timer = self._loop.call_later(KEEP_SECONDS, self._trim_all)

    def _trim_all(self) -> None:
        self._trim_timer = None
        for process in self._to_trim:
            if process == PROGRAM:
                self._in_remover(self._writer.trim)
                self._in_remover(self._packer.trim)
            else:
                self._trim(process)
        self._to_trim = {each: left - 1 for each, left in self._to_trim.items() if left > 1}
        self._start_trim_timer()

    def _in_remover(self, function: Callable[..., None], *args: Any) -> None:
        if not self._closed:
            self._remover.submit(function, *args)

    async def close(self) -> None:
        """Remove all segments. Values that were loaded stay valid."""
        self._closed = True
        if self._trim_timer is not None:
            self._trim_timer.cancel()
        await in_thread(self._close)

    def _close(self) -> None:
        self._remover.shutdown()
        self._packer.close()
        self._segments.close()
        self._memory.remove()
        self._disk.remove()


def _memory_folder() -> Scratch:
    """Create a directory in shared memory; where there is none, in the temporary folder."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it is absent, or cannot be written
            return Scratch("data", SHARED_MEMORY)
    return Scratch("data")


def _default_limit(folder: os.PathLike[str]) -> int:
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize // 2
