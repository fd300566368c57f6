"""Futures among the arguments of a task: found and replaced at any depth of plain containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["find_futures", "kept", "with_values"]

CONTAINERS = (list, tuple, set, frozenset)


def find_futures(value: Any) -> list[asyncio.Future[Any]]:
    """Return the futures in a value, each once: itself, or in lists, tuples, sets, dicts' values.

    Subclasses of these, such as named tuples, are taken as they are: nobody can say how to make
    another one.
    """
    found: dict[asyncio.Future[Any], None] = {}
    _collect((value,), found, set())
    return list(found)


def _collect(
    values: Iterable[Any], found: dict[asyncio.Future[Any], None], inside: set[int]
) -> None:
    for value in values:
        kind = type(value)
        if kind in CONTAINERS or kind is dict:
            if value and id(value) not in inside:  # else empty, or it contains itself
                inside.add(id(value))
                _collect(value.values() if kind is dict else value, found, inside)
                inside.discard(id(value))
        elif isinstance(value, asyncio.Future):
            found[value] = None


def with_values(value: Any) -> Any:
    """Return a value with the result of every future in its place; all of them are done.

    Containers without futures stay the objects that they are.
    """
    return _replace(value, lambda future: future.result(), set())


def kept(value: Any) -> Any:
    """Return a value in which the containers with futures are copies.

    What the caller puts into a list after a call is then no part of that call.
    """
    return _replace(value, lambda future: future, set())


def _replace(value: Any, new_for: Callable[[asyncio.Future[Any]], Any], inside: set[int]) -> Any:
    kind = type(value)
    if isinstance(value, asyncio.Future):
        return new_for(value)
    if (kind not in CONTAINERS and kind is not dict) or id(value) in inside:
        return value
    inside.add(id(value))
    old = list(value.values() if kind is dict else value)
    new = [_replace(item, new_for, inside) for item in old]
    inside.discard(id(value))
    if all(a is b and not isinstance(a, asyncio.Future) for a, b in zip(old, new, strict=True)):
        return value
    return dict(zip(value, new, strict=True)) if kind is dict else kind(new)
