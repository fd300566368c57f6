"""Large results that stay on a Dask worker, from which every task gets a copy of its own."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

from rhapsody.backends.data.packing import DataPickler

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """A pickled value, with its large data beside the pickle stream.

    Attributes:
        stream: The pickle stream.
        buffers: Its out-of-band buffers; those of writable objects are bytearrays.
    """

    stream: bytes
    buffers: tuple[bytes | bytearray, ...]

    @classmethod
    def of(cls, value: Any) -> Snapshot:
        """Return a snapshot of a value; later changes of the value do not change it.

        Raises:
            Exception: The value cannot be pickled.
        """
        buffers: list[pickle.PickleBuffer] = []
        with io.BytesIO() as file:
            DataPickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
            stream = file.getvalue()
        views = [buffer.raw() for buffer in buffers]
        return cls(stream, tuple(bytes(v) if v.readonly else bytearray(v) for v in views))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return len(self.stream) + sum(map(len, self.buffers))

    def __sizeof__(self) -> int:
        """Return its size for Dask, which places tasks and limits memory by it."""
        return object.__sizeof__(self) + self.nbytes

    def load(self) -> Any:
        """Return the value, which takes the place of the snapshot: it has its data."""
        return pickle.loads(self.stream, buffers=self.buffers)

    def copy(self) -> Any:
        """Return a copy of the value, with data of its own."""
        buffers = [bytearray(b) if isinstance(b, bytearray) else b for b in self.buffers]
        return pickle.loads(self.stream, buffers=buffers)
