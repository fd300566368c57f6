"""Futures among the arguments of a task: found and replaced at any depth of plain containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

__all__ = ["find_futures", "with_values"]

CONTAINERS = (list, tuple, set, frozenset)


def find_futures(value: Any) -> Iterator[asyncio.Future[Any]]:
    """Yield the futures in a value: itself, or inside lists, tuples, sets and dicts' values.

    Subclasses of these, such as named tuples, are taken as they are: nobody can say how to make
    another one.
    """
    kind = type(value)
    if kind in CONTAINERS:
        for item in value:
            yield from find_futures(item)
    elif kind is dict:
        for item in value.values():
            yield from find_futures(item)
    elif isinstance(value, asyncio.Future):
        yield value


def with_values(value: Any) -> Any:
    """Return a value with the result of every future in its place; all of them are done."""
    kind = type(value)
    if kind in CONTAINERS:
        return kind(with_values(item) for item in value)
    if kind is dict:
        return {key: with_values(item) for key, item in value.items()}
    return value.result() if isinstance(value, asyncio.Future) else value
