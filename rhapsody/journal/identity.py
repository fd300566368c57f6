"""What tells functions of one name apart if a `version` replaces their code."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

from rhapsody.journal.code import code_of
from rhapsody.journal.values import UnstableValueError, ValueHasher, blake

__all__ = ["identity_of"]


def identity_of(function: Any) -> bytes:
    """Return bytes that are the same for the same function in every run, whatever its code.

    A function is told by its qualified name, a method also by the state of its object, a partial
    also by its arguments. A lambda has no name, so its own code, defaults and closure count.

    Raises:
        UnstableValueError: The object of a method, or an argument, has no stable hash.
    """
    if isinstance(function, partial):
        given = _state("an argument of the partial", (function.args, function.keywords))
        return identity_of(function.func) + b"\0" + given
    owner = getattr(function, "__self__", None)
    if isinstance(function, (types.MethodType, types.BuiltinMethodType)) and not isinstance(
        owner, (type(None), types.ModuleType)
    ):
        return _name(function) + b"\0" + _state("the object of the method", owner)
    if isinstance(function, types.LambdaType) and function.__name__ == "<lambda>":
        parts = code_of(function).parts.items()
        own = [f"{part} {digest}" for part, digest in parts if part.startswith(OWN_PARTS)]
        return _name(function) + b"\0" + "\0".join(own).encode()
    if hasattr(function, "__qualname__"):
        return _name(function)
    return _state("the callable object", function)


OWN_PARTS = ("closure value ", "code", "defaults of code")
"""The parts of a lambda's code that stand in the lambda."""


def _name(function: Any) -> bytes:
    # Not the module: a file that was renamed has the same functions.
    return str(getattr(function, "__qualname__", type(function).__qualname__)).encode()


def _state(what: str, value: Any) -> bytes:
    try:
        return blake(ValueHasher(lambda inner, _: _name(inner)).encode(value))
    except UnstableValueError as error:
        raise UnstableValueError(f"{what} is or contains {error}") from error
