"""Pickles of results: which values are quick to pickle, and what can be pickled."""

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from rhapsody.journal.pickles import is_quick, pickled


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


class Sparse:
    """An array without a size in bytes, as a sparse tensor of PyTorch."""

    @property
    def nbytes(self) -> int:
        raise RuntimeError("nbytes is not defined for sparse tensors")


class Unbound:
    """A proxy without an object."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no object")


def test_value_that_cannot_be_read_is_not_quick() -> None:
    assert not is_quick([Unbound()])


@pytest.mark.parametrize("value", [None, 1, "a", {"a": [1, 2]}, np.zeros(10), Holder(1), Sparse()])
def test_small_value_is_quick(value: Any) -> None:
    assert is_quick(value)


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 10**6,
        list(range(10**4)),
        np.zeros(10**6),
        {"a": np.zeros(10**6)},
        Holder(np.zeros(10**6)),
        [[[n] * 100] for n in range(100)],
    ],
)
def test_value_that_may_be_large_is_not_quick(value: Any) -> None:
    assert not is_quick(value)


def test_function_in_a_function_can_be_pickled() -> None:
    def local() -> int:
        return 7

    assert pickle.loads(pickled(local))() == 7


def test_value_that_cannot_be_pickled_raises() -> None:
    with pytest.raises(TypeError, match="lock"):
        pickled(threading.Lock())
