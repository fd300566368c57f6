"""Functions whose code does not count: which are the same, and which are not."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from rhapsody.journal.identity import identity_of
from rhapsody.journal.values import UnstableValueError


class Scale:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def apply(self, x: int) -> Any:
        return self.factor * x

    @classmethod
    def make(cls) -> Any:
        return cls(1)

    def __call__(self, x: int) -> Any:
        return self.factor * x


def plain(x: Any) -> Any:
    return x


def scaled(factor: int) -> Callable[[int], int]:
    return lambda x: factor * x


def in_place(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["f"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scale(2).apply, Scale(2).apply),
        (Scale(2), Scale(2)),
        (scaled(2), scaled(2)),
        (partial(plain, 1), partial(plain, 1)),
        (in_place("def f(x): return 1"), in_place("\n\ndef f(x): return 2")),
        (in_place("f = lambda x: 1"), in_place("# moved\n\nf = lambda x: 1")),
    ],
)
def test_same_function_has_the_same_identity(one: Any, other: Any) -> None:
    assert identity_of(one) == identity_of(other)


def test_different_functions_have_different_identities() -> None:
    functions = [
        plain,
        partial(plain, 1),
        partial(plain, 2),
        Scale(2).apply,
        Scale(3).apply,
        Scale(2),
        Scale(3),
        Scale.make,
        partial(Scale(2).apply, 1),
        partial(Scale(3).apply, 1),
        scaled(2),
        scaled(3),
        lambda x: x + 1,
        lambda x: x + 2,
        lambda x, y=1: x,
        lambda x, y=2: x,
        "a".join,
        "b".join,
        len,
        print,
    ]
    assert len({identity_of(function) for function in functions}) == len(functions)


def test_code_of_an_objects_class_does_not_count() -> None:
    source = "class Unit:\n    def scale(self): return {}\nf = Unit().scale"
    assert identity_of(in_place(source.format(1))) == identity_of(in_place(source.format(2)))


@pytest.mark.parametrize(
    "function",
    [Scale(threading.Lock()).apply, Scale(threading.Lock()), partial(plain, threading.Lock())],
)
def test_object_without_stable_state_is_refused_by_name(function: Any) -> None:
    with pytest.raises(UnstableValueError, match=r"is or contains a _thread.lock"):
        identity_of(function)
