"""A Dask worker's part in the store for large data, which its program owns."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rhapsody.backends.data.client import DataClient
from rhapsody.backends.data.packing import Packed
from rhapsody.backends.data.segments import KEPT_BYTES, Folders
from rhapsody.scratch import is_shared

__all__ = ["TAKE_BACK", "TRIM", "Report", "WorkerData", "number_of"]

TAKE_BACK, TRIM = "take_back", "trim"
"""Orders of the program."""

KEPT_PART = 8
"""A worker keeps at most this part of its memory for later data, since Dask limits its memory."""

Report = tuple[list[str], list[tuple[str, bool]]]


class WorkerData:
    """Packs the results of a Dask worker, loads its arguments, and notes which segments it uses.

    Args:
        folders: The directories of the store, which this process can use.
        memory: The worker's limit of memory in bytes. None: it has none.
        on_report: Called when `take_report` has something to return. May be called in any thread
            and at any time, also during garbage collection.

    Attributes:
        number: The number of this process among the users of segments.
    """

    def __init__(self, folders: Folders, memory: int | None, on_report: Callable[[], None]) -> None:
        self.number = secrets.randbelow(1 << 48) + 1
        kept = KEPT_BYTES if memory is None else min(KEPT_BYTES, memory // KEPT_PART)
        self._client = DataClient(folders, self.number, on_report, kept)
        self._on_report = on_report
        self._held: deque[str] = deque()

    @classmethod
    def open(
        cls, folders: Folders, memory: int | None, on_report: Callable[[], None]
    ) -> WorkerData | None:
        """Use a store; None if this process cannot: it runs on another host, or as another user."""
        try:
            if is_shared(Path(folders.memory)) and is_shared(Path(folders.disk)):
                return cls(folders, memory, on_report)
        except OSError:
            pass
        return None

    def pack(self, value: Any) -> bytes | Packed:
        """Pickle a result; see `Packer.pack`."""
        return self._client.pack(value)

    def load(self, packed: Packed) -> Any:
        """Load arguments; see `Packer.load`."""
        self._held.extend(packed.segments)
        self._on_report()
        return self._client.load(packed)

    def take_report(self) -> Report:
        """Return the segments used, and those used no longer, one entry for each use.

        The program notes the first before the second.
        """
        dropped = self._client.take_dropped()  # before what was held: each was held earlier
        held = [self._held.popleft() for _ in range(len(self._held))]
        return held, dropped

    def follow(self, orders: Sequence[tuple[Any, ...]]) -> None:
        """Follow orders of the program: take segments back, or trim."""
        for name, *args in orders:
            if name == TAKE_BACK:
                self._client.take_back(*args)
            else:
                self._client.trim()

    def close(self) -> None:
        """Close what this object holds open. Values that were loaded stay valid."""
        self._client.close()


def number_of(data: WorkerData | None) -> int:
    """Return the number of a worker; 0 for one that does not see the store."""
    return 0 if data is None else data.number
