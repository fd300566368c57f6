"""Pickles of results, and which values are quick to pickle and to hash."""

from __future__ import annotations

import pickle
from asyncio import isfuture
from collections import deque
from types import FunctionType, ModuleType
from typing import Any

from rhapsody.journal.values import PLAIN

__all__ = ["is_quick", "pickled"]

QUICK_BYTES = 256 << 10
"""Texts and arrays up to this many bytes together are read in the caller's thread, in 0.1 ms."""
QUICK_ITEMS = 500
"""Up to this many values together are read in the caller's thread, in about 0.3 ms."""
CONTAINERS = (deque, dict, frozenset, list, set, tuple)


def pickled(value: Any) -> bytes:
    """Return the pickle of a value.

    Raises:
        Exception: It cannot be pickled, not even by cloudpickle.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        data: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return data


def is_quick(value: Any) -> bool:
    """Return whether a value is small, as far as a short look tells.

    Args:
        value: A result, or the arguments of a call. A future among them counts by its key.
    """
    try:
        return _is_small(value)
    except Exception:  # of code of the user, such as a property
        return False


def _is_small(value: Any) -> bool:
    values, items, size = [value], QUICK_ITEMS, QUICK_BYTES
    while values:
        value = values.pop()
        kind = type(value)
        if kind in PLAIN:
            size -= len(value) if kind in (bytes, str) else 0
        elif isinstance(value, CONTAINERS):
            items -= len(value)
            if items >= 0:
                values += value.values() if isinstance(value, dict) else value
        elif not isfuture(value):
            size -= _array_bytes(value)
            fields = getattr(value, "__dict__", None)
            if isinstance(fields, dict) and not isinstance(value, (type, FunctionType, ModuleType)):
                values.append(fields)
        if items < 0 or size < 0:
            return False
    return True


def _array_bytes(value: Any) -> int:
    """Return the size of an array, a tensor or a frame in bytes; 0 for other values."""
    try:
        size = getattr(value, "nbytes", None)
    except Exception:  # such as NotImplementedError of a sparse tensor
        return 0
    if size is None and type(value).__module__.startswith("pandas."):
        size = 8 * getattr(value, "size", 0)
    return size if isinstance(size, int) else len(value) if isinstance(value, bytearray) else 0
