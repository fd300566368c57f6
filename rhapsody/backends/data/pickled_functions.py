"""The pickles of functions that cannot be imported, kept until something in a function changes."""

from __future__ import annotations

import functools
import operator
import sys
import typing
import weakref
from collections.abc import Callable, MutableMapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import cloudpickle

from rhapsody.backends.data.packing import is_plain

__all__ = ["PickledFunctions"]

CODES = 1024
"""Maximum number of code objects whose global names are kept."""

ABSENT, EMPTY, SEEN = object(), object(), object()
"""Stand for a global variable that does not exist, for an empty dict, and for a function that
occurs again."""


class _Pickled(NamedTuple):
    """A pickle, what it was made from, and the number of modules at that time."""

    data: bytes
    contents: list[Any]
    modules: int


class PickledFunctions:
    """Keeps the pickles of functions that are pickled by value.

    Such a pickle has the function's code and the global variables that it uses, and takes long to
    make. It is used again if it was made from the same objects, none of which can change.
    """

    def __init__(self) -> None:
        self._kept: MutableMapping[FunctionType, _Pickled] = weakref.WeakKeyDictionary()

    def get(self, function: FunctionType, dump: Callable[[], bytes]) -> bytes:
        """Return the pickle of a function, which `dump` makes."""
        contents = _contents(function)
        if contents is None:
            return dump()
        kept, modules = self._kept.get(function), len(sys.modules)
        # cloudpickle also looks for imported submodules that the function uses.
        if kept is None or kept.modules != modules or not _are_same(kept.contents, contents):
            kept = self._kept[function] = _Pickled(dump(), contents, modules)
        return kept.data


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _contents(function: FunctionType) -> list[Any] | None:
    """Return what the pickle of a function is made from; None if some of it may change."""
    contents: list[Any] = sorted(cloudpickle.list_registry_pickle_by_value())
    return contents if _add(function, contents, {}) else None


def _add(function: FunctionType, contents: list[Any], seen: dict[FunctionType, int]) -> bool:
    """Add what a function is made from; return False if some of it may change unnoticed."""
    if function.__closure__ or function.__kwdefaults__:
        return False
    seen[function] = len(seen)
    code, defaults, variables = function.__code__, function.__defaults__, function.__globals__
    annotations, attributes = function.__annotations__, function.__dict__
    contents += (code, defaults, function.__module__, function.__name__, function.__qualname__)
    contents += (len(annotations), *annotations, len(attributes), *attributes)
    values = [function.__doc__, *(defaults or ()), *annotations.values(), *attributes.values()]
    values += [variables.get(name, ABSENT) for name in _names(code)]
    for value in values:
        if value is None or value is ABSENT or _is_fixed(value):
            contents.append(value)
        elif type(value) is dict and not value:  # AsyncFlow's decorators set such an attribute
            contents.append(EMPTY)
        elif type(value) is not FunctionType:
            return False
        elif value in seen:
            contents += (SEEN, seen[value])
        elif not _add(value, contents, seen):
            return False
    return True


def _is_fixed(value: Any) -> bool:
    """Return whether the pickle of an object never changes."""
    if is_plain(value):
        return True
    if type(value) is ModuleType:
        return sys.modules.get(value.__name__) is value and not _is_by_value(value.__name__)
    if type(value).__module__ in ("types", "typing") and (arguments := typing.get_args(value)):
        origin = typing.get_origin(value)  # of `list[int]`, which is a type for Python 3.10
        return (origin is typing.Union or _is_fixed(origin)) and all(map(_is_fixed, arguments))
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        module = sys.modules.get(value.__module__)
        if module is None or value.__module__ == "__main__" or _is_by_value(value.__module__):
            return False
        return vars(module).get(value.__name__) is value
    return False


def _is_by_value(module: str) -> bool:
    """Return whether a module, or a package that it is in, is registered to be pickled by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(f"{module}.".startswith(f"{name}.") for name in registered)


@functools.lru_cache(CODES)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names of global variables in a function's code, and of attributes."""
    inner = [_names(constant) for constant in code.co_consts if type(constant) is CodeType]
    return tuple(dict.fromkeys([*code.co_names, *(name for names in inner for name in names)]))
