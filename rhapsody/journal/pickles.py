"""Pickles of results, and which results are quick to pickle."""

from __future__ import annotations

import pickle
from typing import Any

from rhapsody.journal.values import PLAIN

__all__ = ["is_quick", "pickled"]

QUICK_BYTES = 256 << 10
"""Arrays up to this many bytes are pickled in the caller's thread, in about 0.1 ms."""
QUICK_ITEMS = 500
"""Containers up to this many items are pickled in the caller's thread."""


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


def is_quick(value: Any, depth: int = 3) -> bool:
    """Return whether a value is small, as far as a short look tells."""
    kind = type(value)
    if kind in PLAIN:
        return kind not in (bytes, str) or len(value) <= QUICK_BYTES
    size = getattr(value, "nbytes", None)  # arrays, tensors and frames
    if isinstance(size, int):
        return size <= QUICK_BYTES
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        if len(value) > QUICK_ITEMS or depth == 0:
            return False
        items = value.values() if isinstance(value, dict) else value
        return all(is_quick(item, depth - 1) for item in items)
    fields = getattr(value, "__dict__", None)
    return not isinstance(fields, dict) or is_quick(fields, depth - 1)
