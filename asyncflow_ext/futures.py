"""Futures among the arguments of a task: found and replaced at any depth of plain containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["find_futures", "with_values"]

CONTAINERS = (list, tuple, set, frozenset)


def find_futures(value: Any) -> list[asyncio.Future[Any]]:
    """Return the futures in a value, each once: itself, or in lists, tuples, sets, dicts' values.

    Subclasses of these, such as named tuples, are taken as they are: nobody can say how to make
    another one.
    """
    found: dict[asyncio.Future[Any], None] = {}
    _collect((value,), found)
    return list(found)


def _collect(values: Iterable[Any], found: dict[asyncio.Future[Any], None]) -> None:
    for value in values:
        kind = type(value)
        if kind in CONTAINERS:
            if value:
                _collect(value, found)
        elif kind is dict:
            if value:
                _collect(value.values(), found)
        elif isinstance(value, asyncio.Future):
            found[value] = None


def with_values(value: Any) -> Any:
    """Return a value with the result of every future in its place; all of them are done."""
    kind = type(value)
    if kind in CONTAINERS:
        return kind(with_values(item) for item in value)
    if kind is dict:
        return {key: with_values(item) for key, item in value.items()}
    return value.result() if isinstance(value, asyncio.Future) else value
