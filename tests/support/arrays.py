"""Functions on arrays that go into shared memory."""

from typing import Any

import numpy as np

LENGTH = 200_000
"""Doubles of an array that goes into shared memory: 1.6 MB."""


def make(fill: float = 1.0) -> Any:
    return np.full(LENGTH, fill)


def add_one(array: Any) -> Any:
    return array + 1


def change(array: Any) -> float:
    array[:] = -1
    return float(array.sum())


def same(value: Any) -> Any:
    return value


async def make_async() -> Any:
    return np.ones(LENGTH)


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))
