"""The pickler for functions: cloudpickle's, which also keeps the files that code comes from."""

from __future__ import annotations

import io
from types import CodeType
from typing import Any

import cloudpickle

__all__ = ["FunctionPickler", "dump_by_value"]


class FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value if they cannot be imported elsewhere.

    cloudpickle replaces the file of such a function by "<dynamic-code>". This pickler keeps its
    name, so that a traceback from another process shows the file and, on this host, the line.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled; see `pickle.Pickler`."""
        if type(obj) is CodeType:
            _, arguments = self.dispatch_table[CodeType](obj)
            return _code, (obj.co_filename, arguments)
        return super().reducer_override(obj)


def dump_by_value(value: Any) -> bytes:
    """Pickle a value, by `FunctionPickler` and with protocol 5.

    Raises:
        Exception: The value cannot be pickled.
    """
    with io.BytesIO() as file:
        FunctionPickler(file, protocol=5).dump(value)
        return file.getvalue()


def _code(file: str, arguments: tuple[Any, ...]) -> CodeType:
    return CodeType(*arguments).replace(co_filename=file)
