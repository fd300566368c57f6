"""A worker's part in the data store of its node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.backends.data.packing import Packed, Packer
from rhapsody.backends.data.segments import KEPT_BYTES, Folders, Segments
from rhapsody.backends.data.writer import SegmentWriter
from rhapsody.scratch import remove_abandoned

__all__ = ["DataClient"]

PATIENCE_SECONDS = 1.0
"""How long the kernel may take to unlock the files of a killed program; sockets may close first."""


class DataClient:
    """Packs the results of a worker, and loads its arguments.

    Args:
        folders: The directories of the store.
        number: The worker's number.
        on_dropped: Called when `take_dropped` has something to return. May be called in any thread
            and at any time, also during garbage collection.
        kept_bytes: Maximum memory of the unused segments, and of the unused mappings, that it keeps
            for later data.
    """

    def __init__(
        self,
        folders: Folders,
        number: int,
        on_dropped: Callable[[], None],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._folders = folders
        self._segments = Segments(folders)
        self._writer = SegmentWriter(self._segments, number, kept_bytes)
        self._packer = Packer(self._segments, self._writer, self._on_unmapped, kept_bytes)
        self._on_dropped = on_dropped
        self._dropped: deque[tuple[str, bool]] = deque()

    def pack(self, value: Any) -> bytes | Packed:
        """Pickle a result; see `Packer.pack`."""
        return self._packer.pack(value)

    def load(self, packed: Packed) -> Any:
        """Load arguments; see `Packer.load`."""
        return self._packer.load(packed)

    def discard(self, packed: Packed) -> None:
        """Do without arguments that were not loaded."""
        for segment in packed.segments:
            self._on_unmapped(segment, True)

    def close(self) -> None:
        """Close what this object holds open. Values that were loaded stay valid."""
        self._packer.close()
        self._segments.close()

    def take_back(self, name: str, reusable: bool) -> None:
        """Take a segment back that nobody uses."""
        self._writer.take_back(name, reusable)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of this process that no value uses."""
        return self._writer.mapped_bytes + self._packer.kept_bytes

    def trim(self) -> None:
        """Remove the segments, and end the mappings, that nobody has used since the last call."""
        self._writer.trim()
        self._packer.trim()

    def _on_unmapped(self, segment: str, reusable: bool) -> None:
        self._dropped.append((segment, reusable))
        self._on_dropped()

    def take_dropped(self) -> list[tuple[str, bool]]:
        """Return the segments that were dropped since the last call, one entry for each use."""
        dropped = []
        while self._dropped:
            dropped.append(self._dropped.popleft())
        return dropped

    def remove_if_abandoned(self) -> None:
        """Remove the store, if its program has ended without doing so."""
        for folder in (self._folders.memory, self._folders.disk):
            remove_abandoned(Path(folder), PATIENCE_SECONDS)
