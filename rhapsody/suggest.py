"""Suggestions for misspelled names in error messages."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

__all__ = ["did_you_mean", "suggest_parameters", "unknown_name"]

P = ParamSpec("P")
R = TypeVar("R")


def did_you_mean(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Return "did you mean 'timeout'?" for the known name nearest to a misspelled one.

    Args:
        name: The unknown name.
        known: The names that exist.
        cutoff: Minimum similarity of a suggestion, between 0 and 1, as `difflib` computes it.

    Returns:
        The question, or "" if no known name is similar enough.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else ""


def unknown_name(what: str, name: str, known: Collection[str], where: str = "") -> str:
    """Return the error message for an unknown name.

    Args:
        what: What the name stands for, such as "backend" or "ai_task option".
        name: The unknown name.
        known: The names that exist.
        where: The place it was found in, such as "section 'llm'".

    Returns:
        "unknown backend 'dsk'; did you mean 'dask'? Known: concurrent, dask", or
        "unknown backend 'x'; known: concurrent, dask" if no known name is similar.
    """
    unknown = f"unknown {what} '{name}'" + (f" in {where}" if where else "")
    hint = did_you_mean(name, known)
    names = ", ".join(sorted(known))
    return f"{unknown}; {hint} Known: {names}" if hint else f"{unknown}; known: {names}"


def suggest_parameters(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a constructor: an unknown keyword argument raises an error with the nearest name.

    Python says only that the keyword argument is unexpected; since 3.13 it also suggests a name.

    Args:
        function: A method without `**kwargs`. Its first parameter is its class or its object.

    Returns:
        The method, with the same signature. If no name is near, its error lists all of them.
    """
    known = dict.fromkeys(list(inspect.signature(function).parameters)[1:])
    where = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                hint = did_you_mean(name, known) or f"its parameters: {', '.join(known)}"
                raise TypeError(f"{where}() has no parameter '{name}'; {hint}")
        return function(*args, **kwargs)

    return checked
