"""Stable hashes of values: equal values have equal hashes, in every process and on every machine.

Python's `hash` differs between processes, and a pickle differs with the order of a set and with
the identity of its objects. Here a value is encoded as bytes: small values by their text, large
ones by a digest.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import logging
import math
import struct
import sys
import types
from asyncio import isfuture
from collections.abc import Callable, Iterable
from hashlib import blake2b
from operator import itemgetter
from pathlib import PurePath
from typing import Any

import xxhash

__all__ = ["DIGEST_BYTES", "PLAIN", "UnstableValueError", "ValueHasher", "blake"]

DIGEST_BYTES = 16

PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
"""Types whose values are written as text, without a search for other values inside."""

OPAQUE = frozenset(
    {
        "_asyncio",
        "_io",
        "_thread",
        "asyncflow_ext",
        "asyncio",
        "concurrent",
        "distributed",
        "dragon",
        "logging",
        "multiprocessing",
        "radical",
        "rhapsody",
        "socket",
        "sqlite3",
        "threading",
    }
)
"""Packages whose objects belong to one process, and so have no stable hash."""


def blake(data: bytes) -> bytes:
    """Return the digest of some bytes."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


class UnstableValueError(TypeError):
    """A value has no stable hash; the message names it."""


class ValueHasher:
    """Encodes the values of one call.

    An object that occurs several times is encoded once.

    Args:
        encode_callable: Returns the encoding of a function or a class.
        encode_future: Returns the encoding of a future among the arguments.
        lenient: A value without a stable hash, also inside another value, counts by its type.
    """

    def __init__(
        self,
        encode_callable: Callable[[Any, ValueHasher], bytes],
        encode_future: Callable[[Any, ValueHasher], bytes] | None = None,
        lenient: bool = False,
    ) -> None:
        self._encode_callable = encode_callable
        self._encode_future = encode_future
        self._lenient = lenient
        self._known: dict[int, bytes] = {}
        self._kept: list[Any] = []  # an id is unique only while its object exists

    def encode(self, value: Any) -> bytes:
        """Return bytes that describe a value and no other value.

        Raises:
            UnstableValueError: The value, or a value inside it, has no stable hash.
        """
        kind = type(value)
        if kind in PLAIN:
            return _encode_plain(value)
        known = self._known.get(id(value))
        if known is not None:
            return known
        self._kept.append(value)
        self._known[id(value)] = b"^%d;" % len(self._known)  # a value that contains itself
        try:
            encoded = self._encode_other(value, kind)
        except RecursionError:
            raise UnstableValueError(f"a {kind.__qualname__} that is nested too deeply") from None
        except UnstableValueError:
            if not self._lenient:
                raise
            encoded = f"type {kind.__module__}.{kind.__qualname__}".encode()
        if len(encoded) > 64:
            encoded = b"#" + blake(encoded)
        self._known[id(value)] = encoded
        return encoded

    def _encode_other(self, value: Any, kind: type) -> bytes:
        encoder = _ENCODERS.get(kind)
        if encoder is not None:
            return encoder(self, value)
        if isinstance(value, type) or callable(value):
            special = self._encode_special_callable(value)
            if special is not None:
                return special
        if isfuture(value):
            if self._encode_future is None:
                raise UnstableValueError("a future")
            return self._encode_future(value, self)
        for encode in (_encode_text_type, _encode_array, _encode_frame, _encode_record):
            encoded = encode(self, value)
            if encoded is not None:
                return encoded
        return self._encode_object(value)

    def _encode_special_callable(self, value: Any) -> bytes | None:
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return b"partial" + self.sequence(parts)
        if isinstance(value, types.MethodType):
            return b"method" + self.sequence((value.__self__, value.__func__))
        if isinstance(value, types.BuiltinMethodType) and not isinstance(
            value.__self__, (types.ModuleType, type(None))
        ):
            return b"builtin" + self.sequence((value.__self__, value.__name__))
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return b"code" + self._encode_callable(value, self)
        if hasattr(value, "__wrapped__"):
            return b"code" + self._encode_callable(value, self)
        return None

    def sequence(self, values: Iterable[Any]) -> bytes:
        """Return the encoding of values in their order."""
        return b"(" + b"".join(map(self.encode, values)) + b")"

    def mapping(self, mapping: Any) -> bytes:
        """Return the encoding of a mapping, whatever the order of its keys."""
        # Values are encoded in the order of their keys, since their functions are numbered.
        keys = sorted(((self.encode(key), key) for key in mapping), key=itemgetter(0))
        pairs = (encoded + self.encode(mapping[key]) for encoded, key in keys)
        return b"{" + b"".join(pairs) + b"}"

    def unordered(self, values: Iterable[Any]) -> bytes:
        """Return the encoding of values, whatever their order."""
        values = sorted(values, key=_place_in_source)
        return b"<" + b"".join(sorted(map(self.encode, values))) + b">"

    def _encode_object(self, value: Any) -> bytes:
        """Encode an object as the copy module would rebuild it."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__.partition(".")[0] in OPAQUE:
            raise UnstableValueError(f"a {name}")
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise UnstableValueError(f"a {name}") from error
        if isinstance(reduced, str):
            return b"global" + self.sequence((kind, reduced))
        parts = [*reduced, None, None, None, None, None]
        rebuild, args, state, items, pairs = parts[:5]
        entries = dict(pairs) if pairs is not None else {}
        if isinstance(value, dict) and not hasattr(kind, "move_to_end"):
            pairs_encoded = self.mapping(entries)
        else:
            pairs_encoded = self.sequence(entries.items())
        encoded = (b"object", self.encode(kind), self.encode(rebuild), self.encode(args))
        members = self.unordered(items or ()) if isinstance(value, (set, frozenset)) else b""
        rest = self.encode(state), self.sequence(items or ()), pairs_encoded, members
        return b"".join((*encoded, *rest))


def _place_in_source(value: Any) -> tuple[str, int]:
    """Return the name and the line of a function, so that functions in a set have an order."""
    code = getattr(value, "__code__", None)
    name = str(getattr(value, "__qualname__", "")) if callable(value) else ""
    return name, getattr(code, "co_firstlineno", 0)


def _encode_plain(value: Any) -> bytes:
    if type(value) is float:
        return b"f" + (b"nan" if math.isnan(value) else struct.pack(">d", value))
    if type(value) is str:
        text = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(text), text) if len(text) < 64 else b"S" + blake(text)
    if type(value) is bytes:
        return b"b%d:%b" % (len(value), value) if len(value) < 64 else b"B" + _buffer(value)
    if type(value) is int:
        return b"i%x;" % value  # decimal digits of large numbers are slow, and limited
    return b"n" if value is None else b"t" if value else b"u"


def _buffer(buffer: Any) -> bytes:
    return xxhash.xxh3_128_digest(buffer)


def _encode_range(hasher: ValueHasher, value: Any) -> bytes:
    return b"range" + hasher.sequence((value.start, value.stop, value.step))


_ENCODERS: dict[type, Callable[[ValueHasher, Any], bytes]] = {
    bytearray: lambda _, value: b"bytearray" + _buffer(value),
    complex: lambda hasher, value: b"complex" + hasher.sequence((value.real, value.imag)),
    dict: lambda hasher, value: hasher.mapping(value),
    frozenset: lambda hasher, value: b"frozen" + hasher.unordered(value),
    list: lambda hasher, value: b"list" + hasher.sequence(value),
    range: _encode_range,
    set: lambda hasher, value: hasher.unordered(value),
    slice: _encode_range,
    tuple: lambda hasher, value: hasher.sequence(value),
    types.ModuleType: lambda _, value: b"module" + value.__name__.encode(),
    type(...): lambda _, value: b"...",
    type(NotImplemented): lambda _, value: b"NotImplemented",
}


def _encode_text_type(hasher: ValueHasher, value: Any) -> bytes | None:
    if isinstance(value, PurePath):
        return b"path" + hasher.encode(str(value))
    if isinstance(value, enum.Enum):
        return b"enum" + hasher.sequence((type(value), value.name, value.value))
    if isinstance(value, datetime.tzinfo) and hasattr(value, "key"):
        return b"zone" + hasher.encode(value.key)
    if type(value).__module__ == "radical.asyncflow.data":  # an InputFile or an OutputFile
        return b"file" + hasher.encode(value.filename)
    if isinstance(value, logging.Logger):
        return b"logger" + hasher.encode(value.name)
    return None


def _encode_array(hasher: ValueHasher, value: Any) -> bytes | None:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.generic):
        return b"scalar" + hasher.encode(numpy.asarray(value))
    if numpy is not None and type(value) in (numpy.ndarray, numpy.memmap):
        dtype = repr(value.dtype.descr) if value.dtype.fields else value.dtype.str
        shape = b"array" + hasher.sequence((dtype, value.shape))
        if value.dtype.hasobject:
            return shape + hasher.encode(value.tolist())
        flat = numpy.ascontiguousarray(value).reshape(-1)
        return shape + _buffer(flat.view(numpy.uint8).data if flat.nbytes else b"")
    if torch is not None and isinstance(value, torch.Tensor) and value.layout == torch.strided:
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        described = (str(value.dtype), tuple(value.shape), value.requires_grad)
        return b"tensor" + hasher.sequence(described) + _buffer(plain.data if plain.size else b"")
    return None


def _encode_frame(hasher: ValueHasher, value: Any) -> bytes | None:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    if isinstance(value, pandas.DataFrame):
        columns = [value.iloc[:, position].array for position in range(value.shape[1])]
        return b"frame" + hasher.sequence((value.columns, value.index, columns, value.attrs))
    if isinstance(value, pandas.Series):
        return b"series" + hasher.sequence((value.name, value.index, value.array, value.attrs))
    if isinstance(value, pandas.Index) and not isinstance(value, pandas.MultiIndex):
        return b"index" + hasher.sequence((list(value.names), value.array))
    if isinstance(value, pandas.arrays.NumpyExtensionArray):
        return b"column" + hasher.encode(value.to_numpy())
    return None


def _encode_record(hasher: ValueHasher, value: Any) -> bytes | None:
    """Encode a dataclass or a pydantic model by its class and its fields."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in OPAQUE:
        return None
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
        return b"fields" + hasher.encode(kind) + hasher.mapping(fields)
    if hasattr(kind, "model_json_schema"):
        fields = {**value.__dict__, **(getattr(value, "__pydantic_extra__", None) or {})}
        return b"fields" + hasher.encode(kind) + hasher.mapping(fields)
    return None
