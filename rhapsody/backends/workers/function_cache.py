"""Functions that a worker has unpickled, for later calls."""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from typing import Any

__all__ = ["FunctionCache"]

FUNCTIONS = 128
"""Maximum number of functions kept."""

LARGE_BYTES = 1024 * 1024
"""A pickled function of this size or more is not kept."""


class FunctionCache:
    """Unpickles functions, and keeps the latest stateless ones."""

    def __init__(self) -> None:
        self._functions: OrderedDict[bytes, Any] = OrderedDict()

    def load(self, data: bytes) -> Any:
        """Return the function of its pickled form."""
        function = self._functions.get(data)
        if function is None:
            function = pickle.loads(data)
            if len(data) < LARGE_BYTES and _is_stateless(function):
                self._functions[data] = function
                if len(self._functions) > FUNCTIONS:
                    self._functions.popitem(last=False)
        return function


def _is_stateless(function: Any) -> bool:
    """Return whether calls can share a function, because none can leave state in it."""
    return isinstance(function, types.FunctionType) and not function.__closure__
