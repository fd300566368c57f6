"""Keys of calls: their arguments, their dependencies and their order."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from rhapsody.journal.key import Occurrences, call_key, describe_unstable
from rhapsody.journal.values import UnstableValueError

CODE = b"code"


def test_equal_calls_have_equal_keys() -> None:
    assert call_key(CODE, (1, "a"), {"b": 2.0, "c": None}) == call_key(
        CODE, (1, "a"), {"c": None, "b": 2.0}
    )
    assert call_key(CODE, ([1], {"a": 1, "b": 2}), {}) == call_key(
        CODE, ([1], {"b": 2, "a": 1}), {}
    )


def test_code_belongs_to_the_key() -> None:
    assert call_key(CODE, (1,), {}) != call_key(b"other", (1,), {})


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1.0,), {}),
    ((True,), {}),
    (("1",), {}),
    ((1, 2), {}),
    (((1, 2),), {}),
    (([1, 2],), {}),
    ((), {"a": 1}),
    ((), {"b": 1}),
    ((("a", 1),), {}),
    (([("a", 1)],), {}),
    ((), {"a": [1]}),
    ((np.zeros(3),), {}),
    ((np.zeros(3), np.zeros(3)), {}),
]


def test_different_calls_have_different_keys() -> None:
    assert len({call_key(CODE, args, kwargs) for args, kwargs in CALLS}) == len(CALLS)


def test_surrogates_have_a_key() -> None:
    assert call_key(CODE, ("\udc80",), {}) != call_key(CODE, ("\udc81",), {})


async def test_future_counts_by_what_encodes_it() -> None:
    future = asyncio.get_running_loop().create_future()
    keys = [call_key(CODE, ([future],), {}, lambda _, __, key=key: key) for key in (b"a", b"b")]
    assert keys[0] != keys[1]
    assert keys[0] == call_key(CODE, ([future],), {}, lambda _, __: b"a")


class Proxy:
    """An object whose attributes can be read at times only."""

    def __call__(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no context")


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((Proxy(),), {}, "argument 1 is or contains an object that cannot be read"),
        ((1, threading.Lock()), {}, "argument 2 is or contains a _thread.lock"),
        ((), {"guard": [threading.Lock()]}, "argument 'guard' is or contains a _thread.lock"),
    ],
)
def test_error_names_the_argument(args: Any, kwargs: Any, named: str) -> None:
    with pytest.raises(UnstableValueError, match=named) as caught:
        call_key(CODE, args, kwargs)
    assert "run in every run" in describe_unstable("task", caught.value)


def test_occurrences_of_equal_calls_have_different_keys_in_order() -> None:
    one, other = Occurrences(), Occurrences()
    keys = [one.next_key(b"k" * 16) for _ in range(3)]
    assert len(set(keys)) == 3
    assert keys == [other.next_key(b"k" * 16) for _ in range(3)]
    assert other.next_key(b"j" * 16) == b"j" * 16
