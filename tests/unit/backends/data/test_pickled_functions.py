"""Pickles of functions are kept until something that the functions use changes."""

import functools
import importlib
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from rhapsody.backends.data.pickled_functions import PickledFunctions

PROGRAM = """
import math
import os.path

factor = 2
items = []
helper = None

def scale(number: int, step: int = 1) -> list[int]:
    return [factor * number + step]

def triple(number):
    return 3 * number

def quadruple(number):
    return 4 * number

def both(number):
    return helper(number), other(number)

def count(number):
    return number if number == 0 else count(number - 1)

def root(number):
    return math.sqrt(number), os.path.sep

def collect():
    return len(items)

def nested(number):
    return [factor * n for n in range(number)], (lambda: factor)()
"""


class Pickles:
    """Pickles functions, and counts how often."""

    def __init__(self) -> None:
        self.made = 0
        self._functions = PickledFunctions()

    def get(self, function: Any) -> bytes:
        def dump() -> bytes:
            self.made += 1
            return bytes(cloudpickle.dumps(function, protocol=5))

        return self._functions.get(function, dump)

    def call(self, function: Any, *args: Any) -> Any:
        return pickle.loads(self.get(function))(*args)


@pytest.fixture
def pickles() -> Pickles:
    return Pickles()


@pytest.fixture
def program() -> dict[str, Any]:
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(PROGRAM, variables)
    return variables


@pytest.mark.parametrize("name", ["scale", "count", "root", "nested"])
def test_unchanged_function_is_pickled_once(
    pickles: Pickles, program: dict[str, Any], name: str
) -> None:
    assert pickles.get(program[name]) is pickles.get(program[name])
    assert pickles.made == 1


def test_changed_variable_is_pickled(pickles: Pickles, program: dict[str, Any]) -> None:
    assert pickles.call(program["scale"], 5) == [11]
    program["factor"] = 10
    assert pickles.call(program["scale"], 5) == [51]


def test_equal_variable_of_another_type_is_pickled(
    pickles: Pickles, program: dict[str, Any]
) -> None:
    program["factor"] = 1
    assert pickles.call(program["scale"], 5) == [6]
    program["factor"] = True
    assert pickles.call(program["scale"], 5) == [6]
    program["factor"] = 1.0
    assert repr(pickles.call(program["scale"], 5)) == "[6.0]"


def test_variable_of_an_inner_function_is_pickled(
    pickles: Pickles, program: dict[str, Any]
) -> None:
    assert pickles.call(program["nested"], 2) == ([0, 2], 2)
    program["factor"] = 3
    assert pickles.call(program["nested"], 2) == ([0, 3], 3)


def test_changed_helpers_are_pickled(pickles: Pickles, program: dict[str, Any]) -> None:
    triple, quadruple = program["triple"], program["quadruple"]
    for helper, other in (
        (triple, quadruple),
        (quadruple, triple),
        (triple, triple),
        (quadruple, quadruple),
    ):
        program.update(helper=helper, other=other)
        assert pickles.call(program["both"], 2) == (helper(2), other(2))
    program["helper"].__code__ = triple.__code__
    assert pickles.call(program["both"], 2) == (6, 6)
    program["helper"] = program["both"].__class__(triple.__code__, {})
    assert pickles.call(program["both"], 2) == (6, 6)
    program["quadruple"].__defaults__ = (1,)
    assert pickles.call(program["both"], 2) == (6, 6)
    assert pickles.made == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda function: setattr(function, "__defaults__", (7,)),
        lambda function: setattr(function, "__name__", "other"),
        lambda function: setattr(function, "__annotations__", {}),
        lambda function: setattr(function, "__doc__", "Text."),
        lambda function: setattr(function, "attribute", 1),
        lambda function: setattr(function, "__kwdefaults__", {"step": 7}),
        lambda function: function.__annotations__.update(number=float),
    ],
)
def test_changed_attribute_is_pickled(
    pickles: Pickles, program: dict[str, Any], change: Callable[[Any], None]
) -> None:
    pickles.get(program["scale"])
    change(program["scale"])
    pickles.get(program["scale"])
    assert pickles.made == 2


@pytest.mark.parametrize(
    "value",
    [
        [],
        {1: 2},
        (1, []),
        types.ModuleType("unknown"),
        functools.partial(print),
        type("Own", (), {}),
    ],
    ids=["list", "dict", "tuple", "module", "partial", "class"],
)
def test_function_with_a_variable_that_may_change_is_pickled_each_time(
    pickles: Pickles, program: dict[str, Any], value: Any
) -> None:
    program["items"] = value
    for _ in range(2):
        pickles.get(program["collect"])
    assert pickles.made == 2


def test_variable_of_another_kind_is_pickled(pickles: Pickles, program: dict[str, Any]) -> None:
    collect = program["collect"]
    values: tuple[Any, ...] = (collect, 0, {}, dict)
    for value in values:
        program["items"] = value
        pickles.get(collect)
    assert pickles.made == 4


def test_function_with_an_empty_dict_as_attribute_is_pickled_once(
    pickles: Pickles, program: dict[str, Any]
) -> None:
    attribute: dict[str, int] = {}
    program["scale"].attribute = attribute
    assert pickles.get(program["scale"]) is pickles.get(program["scale"])
    attribute["key"] = 1
    assert pickles.call(program["scale"], 5) == [11]
    assert pickles.made == 2


def test_closure_is_pickled_each_time(pickles: Pickles) -> None:
    number = 1

    def get() -> int:
        return number

    assert pickles.call(get) == 1
    number = 2
    assert pickles.call(get) == 2


def test_function_is_pickled_again_after_an_import(
    pickles: Pickles, program: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pickles.get(program["root"])
    monkeypatch.delitem(sys.modules, "this", raising=False)
    monkeypatch.setitem(sys.modules, "this", types.ModuleType("this"))
    pickles.get(program["root"])
    assert pickles.made == 2


def test_function_is_pickled_again_if_a_module_is_to_be_pickled_by_value(
    pickles: Pickles, program: dict[str, Any]
) -> None:
    module = importlib.import_module("tests.support.functions")
    program["items"] = module.add
    by_name = pickles.get(program["collect"])
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = pickles.get(program["collect"])
        assert pickles.get(program["collect"]) is by_value
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert len(by_value) > len(by_name)
    assert pickles.get(program["collect"]) == by_name


def test_classes_of_modules_that_are_pickled_by_value_may_change(
    pickles: Pickles, program: dict[str, Any]
) -> None:
    module = importlib.import_module("tests.support.functions")
    cloudpickle.register_pickle_by_value(importlib.import_module("tests.support"))
    try:
        program["items"] = module.LockedError
        for _ in range(2):
            pickles.get(program["collect"])
    finally:
        cloudpickle.unregister_pickle_by_value(importlib.import_module("tests.support"))
    assert pickles.made == 2
