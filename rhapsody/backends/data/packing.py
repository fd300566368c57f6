"""Values pickled into segments: a small pickle stream, and the places of the data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from rhapsody.backends.data.mappings import Mappings
from rhapsody.backends.data.pickler import FunctionPickler
from rhapsody.backends.data.segments import KEPT_BYTES, Segments, Span
from rhapsody.backends.data.tensors import reduce_tensor
from rhapsody.backends.data.writer import SegmentWriter

__all__ = ["PLAIN_TYPES", "THRESHOLD", "DataPickler", "MakePickler", "Packed", "Packer", "is_plain"]

THRESHOLD = 256 * 1024
"""Bytes from which a value goes into a segment; smaller ones are copied faster through a socket."""

PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose pickling runs no user code."""

SHARED_BYTES = 64 * 1024
"""Bytes from which a buffer that lies in a segment already is left there."""


class Packed(NamedTuple):
    """A pickled value with data in segments.

    Attributes:
        stream: The pickle stream, or where it is.
        buffers: Its out-of-band buffers, or where they are.
    """

    stream: bytes | Span
    buffers: tuple[Span | bytes | bytearray, ...]

    @property
    def segments(self) -> set[str]:
        """The names of its segments."""
        return {span.segment for span in (self.stream, *self.buffers) if isinstance(span, Span)}

    @property
    def inline_bytes(self) -> int:
        """The size of what is not in segments."""
        return sum(len(part) for part in (self.stream, *self.buffers) if not isinstance(part, Span))


def is_plain(value: Any) -> bool:
    """Return whether pickling a value runs no user code, and the pickle travels in a message."""
    return type(value) in PLAIN_TYPES and (
        type(value) not in (str, bytes) or len(value) < THRESHOLD
    )


class _Pieces(list[Any]):
    """A file for a pickler: keeps the pieces, of which large `bytes` objects are not copied."""

    write = list.append


class DataPickler(FunctionPickler):
    """Pickles functions by value, and the data of tensors out of band."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled; see `pickle.Pickler`."""
        reduced = reduce_tensor(obj)
        return super().reducer_override(obj) if reduced is None else reduced


MakePickler: TypeAlias = Callable[..., DataPickler]


class Packer:
    """Pickles values, large ones into segments, and loads them.

    Args:
        segments: The segments.
        writer: Writes the segments of this process.
        on_unused: Called with the name of a segment that a loaded value no longer uses, and with
            whether the segment may be written again; see `Mappings`.
        kept_bytes: Maximum size of the mappings that are kept.
    """

    def __init__(
        self,
        segments: Segments,
        writer: SegmentWriter,
        on_unused: Callable[[str, bool], None],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._segments = segments
        self._writer = writer
        self._on_unused = on_unused
        self._mappings = Mappings(segments, on_unused, kept_bytes)

    def pack(self, value: Any, make_pickler: MakePickler = DataPickler) -> bytes | Packed:
        """Pickle a value.

        Data that an earlier value brought in a segment, and that nobody has changed, stays there.

        Args:
            value: The value.
            make_pickler: Creates the pickler, a `DataPickler`; takes its arguments.

        Returns:
            The pickle of a small value.

        Raises:
            OSError: There is no room for the data.
            Exception: The value cannot be pickled.
        """
        pieces, buffers = _Pieces(), list[pickle.PickleBuffer]()
        make_pickler(pieces, protocol=5, buffer_callback=buffers.append).dump(value)
        if not buffers and len(pieces) == 1 and len(pieces[0]) < THRESHOLD:
            return bytes(pieces[0])
        views = [buffer.raw() for buffer in buffers]
        stream = [memoryview(piece).cast("B") for piece in pieces]
        if _size(stream) + _size(views) < THRESHOLD:
            return _inline(stream, views)
        places = [self._find(view) for view in views]
        new = [view for view, place in zip(views, places, strict=True) if place is None]
        if _size(stream) + _size(new) < THRESHOLD:
            there = [place or _copy(view) for place, view in zip(places, views, strict=True)]
            return Packed(b"".join(stream), tuple(there))
        return self._write(stream, views, places)

    def _find(self, view: memoryview) -> Span | None:
        return self._mappings.find(view) if view.nbytes >= SHARED_BYTES else None

    def _write(
        self,
        stream: Sequence[memoryview],
        views: Sequence[memoryview],
        places: Sequence[Span | None],
    ) -> Packed:
        new = [v for v, place in zip(views, places, strict=True) if place is None and v.nbytes]
        after = stream if _size(stream) >= SHARED_BYTES else ()
        name, offsets = self._writer.write(new, after)
        spans = iter(
            Span(name, offset, view.nbytes, view.readonly)
            for view, offset in zip(new, offsets[:-1], strict=True)
        )
        buffers = tuple(
            place or (next(spans) if view.nbytes else _copy(view))
            for place, view in zip(places, views, strict=True)
        )
        if not after:
            return Packed(b"".join(stream), buffers)
        return Packed(Span(name, offsets[-1], _size(stream), True), buffers)

    def load(self, packed: Packed) -> Any:
        """Load a value. Each call returns one of its own, which its owner may change.

        Raises:
            Exception: Its data is lost, or an object in it cannot be rebuilt.
        """
        unmapped = packed.segments
        try:
            buffers = self._map(packed, unmapped)
            stream = packed.stream
            if not isinstance(stream, Span):
                return pickle.loads(stream, buffers=buffers)
            # From a file: large `bytes` objects are read into their places, and other threads run.
            with os.fdopen(self._segments.open(stream.segment), "rb") as file:
                file.seek(stream.offset)
                return pickle.Unpickler(file, buffers=buffers).load()
        finally:
            for segment in unmapped:
                self._on_unused(segment, True)

    @property
    def kept_bytes(self) -> int:
        """Resident memory of the mappings that nobody uses."""
        return self._mappings.kept_bytes

    def trim(self) -> None:
        """End the mappings that nobody has used since the last call."""
        self._mappings.trim()

    def close(self) -> None:
        """Keep nothing for later values; loaded ones stay valid."""
        self._mappings.close()

    def _map(self, packed: Packed, unmapped: set[str]) -> list[Any]:
        views = {}
        for segment in {span.segment for span in packed.buffers if isinstance(span, Span)}:
            if self._mappings.are_too_many:
                views[segment] = self._segments.read(segment)
                continue
            views[segment] = self._mappings.map(segment)
            unmapped.discard(segment)
        return [
            _part(span, views[span.segment]) if isinstance(span, Span) else span
            for span in packed.buffers
        ]


def _part(span: Span, view: memoryview) -> memoryview:
    part = view[span.offset : span.offset + span.length]
    return part.toreadonly() if span.readonly else part


def _size(views: Sequence[memoryview]) -> int:
    return sum(view.nbytes for view in views)


def _copy(view: memoryview) -> bytes | bytearray:
    return bytes(view) if view.readonly else bytearray(view)


def _inline(stream: Sequence[memoryview], views: Sequence[memoryview]) -> bytes | Packed:
    joined = b"".join(stream)
    return Packed(joined, tuple(map(_copy, views))) if views else joined
