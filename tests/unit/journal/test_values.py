"""Stable hashes: equal values have equal hashes, different values different ones."""

import copy
import dataclasses
import datetime
import enum
import functools
import logging
import os
import pickle
import subprocess
import sys
import threading
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rhapsody.journal import code
from rhapsody.journal.code import argument_hasher
from rhapsody.journal.values import UnstableValueError

Point = namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Settings:
    size: int
    name: str = "a"


class Model(BaseModel):
    size: int
    name: str = "a"


class Plain:
    def __init__(self, size: int) -> None:
        self.size = size

    def method(self) -> int:
        return self.size


log = logging.getLogger(__name__)
lock = threading.Lock()


class Logging:
    """A class whose code refers to objects of this process."""

    own_log = log

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self) -> int:
        with lock:
            log.info("runs")
        return self.size


def encode(value: Any) -> bytes:
    return argument_hasher().encode(value)


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.frozensets(st.text() | st.integers(), max_size=4)
    ),
    max_leaves=12,
)


@given(nested)
def test_copy_of_value_has_equal_hash(value: Any) -> None:
    assert (
        encode(value) == encode(copy.deepcopy(value)) == encode(pickle.loads(pickle.dumps(value)))
    )


@given(nested, nested)
def test_hashes_are_equal_only_if_text_is_equal(one: Any, other: Any) -> None:
    if repr(one) == repr(other):
        assert encode(one) == encode(other)
    elif encode(one) == encode(other):
        assert one == other


DIFFERENT = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    bytearray(b"1"),
    1j,
    0.0,
    -0.0,
    float("nan"),
    float("inf"),
    10**30,
    -(10**30),
    "",
    b"",
    [],
    (),
    {},
    set(),
    frozenset(),
    [1],
    (1,),
    {1},
    {1: None},
    [[1], 2],
    [1, [2]],
    "x" * 100,
    b"x" * 100,
    range(3),
    slice(0, 3, None),
    ...,
    Path("a"),
    "a",
    Color.RED,
    Color.BLUE,
    Settings(1),
    Settings(2),
    Model(size=1),
    Model(size=2),
    Plain(1),
    Plain(2),
    Plain(1).method,
    Plain(2).method,
    Point(1, 2),
    (1, 2),
    Decimal("1"),
    Fraction(1),
    UUID(int=1),
    datetime.date(2026, 1, 1),
    datetime.datetime(2026, 1, 1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.timedelta(1),
    deque([1]),
    Counter("a"),
    OrderedDict(a=1, b=2),
    OrderedDict(b=2, a=1),
    defaultdict(int, a=1),
    np.float64(1),
    np.float32(1),
    np.int64(1),
    np.array(1),
    np.array([1.0, 2.0]),
    np.array([1, 2]),
    np.array([[1, 2]]),
    np.array(["a", None], dtype=object),
    np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    np.array(["2026-01-01"], dtype="datetime64[D]"),
    np.zeros(0),
    functools.partial(print, 1),
    functools.partial(print, 2),
    print,
    len,
    int,
    str,
    Settings,
    Plain,
    lambda x: x + 1,
    lambda x: x + 2,
    [].append,
    "a".join,
    ValueError("a"),
    ValueError("b"),
]


def test_different_values_have_different_hashes() -> None:
    hashes: dict[bytes, list[Any]] = {}
    for value in DIFFERENT:
        hashes.setdefault(encode(value), []).append(value)
    assert [values for values in hashes.values() if len(values) > 1] == []


EQUAL = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"x", "y", "z"}, {"z", "y", "x"}),
    (Counter("ab"), Counter("ba")),
    (float("nan"), -float("nan")),
    (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
    (Settings(1), Settings(1)),
    (Plain(1), Plain(1)),
    (lambda x: x + 1, lambda x: x + 1),
    (functools.partial(int, base=2), functools.partial(int, base=2)),
    ([[1], [1]], [[1]] * 2),
    (Path("a"), PurePosixPath("a")),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values_have_equal_hashes(one: Any, other: Any) -> None:
    assert encode(one) == encode(other)


def test_torch_tensor_counts_by_type_shape_and_bytes() -> None:
    torch = pytest.importorskip("torch")
    assert encode(torch.ones(3)) == encode(torch.ones(3))
    variants = [
        torch.ones(3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(1, 3),
        torch.zeros(3),
        torch.ones(()),
    ]
    assert len({encode(tensor) for tensor in variants}) == len(variants)


def test_pandas_frame_counts_by_contents() -> None:
    pandas = pytest.importorskip("pandas")
    one = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    other = pandas.DataFrame({"a": [1], "b": ["x"]})
    assert encode(one) == encode(one.copy()) != encode(other)
    assert encode(one["a"]) != encode(one["b"])


def test_value_that_contains_itself_has_a_hash() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    other: list[Any] = [2]
    other.append(other)
    assert encode(loop) != encode(other)


def deep() -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (threading.Lock(), "lock"),
        ((n for n in [1]), "generator"),
        ([1, {"a": threading.Event()}], "Event"),
        (Plain(threading.Lock()), "lock"),  # type: ignore[arg-type]
        (deep(), "nested too deeply"),
    ],
    ids=["lock", "generator", "nested", "attribute", "deep"],
)
def test_value_of_one_process_is_refused_by_name(value: Any, named: str) -> None:
    with pytest.raises(UnstableValueError, match=named):
        encode(value)


def test_open_file_is_refused(tmp_path: Path) -> None:
    with (
        open(tmp_path / "a", "w") as file,
        pytest.raises(UnstableValueError, match="TextIOWrapper"),
    ):
        encode(file)


def test_methods_of_an_enum_count() -> None:
    digests = []
    for factor in (1, 1, 2):
        names: dict[str, Any] = {"__name__": "own"}
        source = f"""
import enum
class Unit(enum.Enum):
    METRE = 1
    def scale(self): return {factor}
"""
        exec(source, names)
        digests.append(encode(names["Unit"].METRE))
    assert digests[0] == digests[1] != digests[2]


PROGRAM = """
import dataclasses, enum
from rhapsody.journal import code
from rhapsody.journal.code import argument_hasher

class Color(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Settings:
    names: set
    color: Color = Color.RED

class Plain:
    pass

value = [Settings({"a", "b", "c"}), Plain(), {"x": 1, "y": (2.5, None)}, lambda a: a + 1]
print(argument_hasher().encode(value).hex())
"""


def test_hash_is_equal_in_every_process() -> None:
    printed = set()
    for seed in "12":
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        )
        printed.add(run.stdout)
    assert len(printed) == 1


def test_argument_whose_class_refers_to_a_logger_has_a_hash() -> None:
    assert encode(Logging(1)) == encode(Logging(1)) != encode(Logging(2))


def test_logger_counts_by_its_name() -> None:
    assert encode(log) == encode(copy.copy(log)) != encode(logging.getLogger("another"))


def test_function_that_holds_a_lock_is_refused() -> None:
    def make(held: Any) -> Any:
        return lambda: held

    assert encode(make(1)) == encode(make(1)) != encode(make(2))
    with pytest.raises(UnstableValueError):
        encode(make(threading.Lock()))


def test_code_of_a_class_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Any] = []
    add_class = code._Walk._add_class

    def add(*args: Any) -> None:
        walks.append(args)
        add_class(*args)

    monkeypatch.setattr(code._Walk, "_add_class", add)

    class Local:
        pass

    first = encode([Local(), Local()])
    number = len(walks)
    assert encode([Local(), Local()]) == first
    assert number > 0
    assert len(walks) == number
