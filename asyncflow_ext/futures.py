"""Futures among the arguments of a task: found and replaced at any depth of plain containers.

Plain containers are lists, tuples, sets, and dicts, of which the values count. Subclasses of these,
such as named tuples, are taken as they are: nobody can say how to make another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["find_futures", "with_values"]

CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def find_futures(value: Any) -> tuple[Any, list[asyncio.Future[Any]]]:
    """Find the futures in a value.

    Returns:
        The value, in which the containers with futures are copies, since what the caller puts into
        a list after a call is no part of that call; and the futures, each once.
    """
    found: dict[asyncio.Future[Any], None] = {}

    def note(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        found[future] = None
        return future

    return _replace(value, note, set()), list(found)


def with_values(value: Any) -> Any:
    """Return a value with the result of every future in its place; all of them are done.

    Containers without futures stay the objects that they are.
    """
    return _replace(value, lambda future: future.result(), set())


def _replace(value: Any, new_for: Callable[[asyncio.Future[Any]], Any], inside: set[int]) -> Any:
    new, changed = _replace_each((value,), new_for, inside)
    return new[0] if changed else value


def _replace_each(
    values: Iterable[Any], new_for: Callable[[asyncio.Future[Any]], Any], inside: set[int]
) -> tuple[list[Any], bool]:
    """Return values with new ones for futures, and whether there were any."""
    new, changed = [], False
    for value in values:
        kind = type(value)
        if kind in CONTAINERS:
            if value and id(value) not in inside:  # else empty, or it contains itself
                inside.add(id(value))
                items, renewed = _replace_each(
                    value.values() if kind is dict else value, new_for, inside
                )
                inside.discard(id(value))
                if renewed:
                    changed = True
                    value = dict(zip(value, items, strict=True)) if kind is dict else kind(items)
        elif isinstance(value, asyncio.Future):
            changed = True
            value = new_for(value)
        new.append(value)
    return new, changed
