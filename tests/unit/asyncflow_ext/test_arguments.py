"""The futures inside the arguments of a call."""

import asyncio
import functools
import gc
import weakref
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.arguments import MANY, allow_failures, find_futures, required, with_values
from rhapsody.errors import TaskCancelledError

pytestmark = pytest.mark.asyncflow


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Point:
    x: Any
    y: Any = field(default=2, init=False)


@dataclass(frozen=True)
class Frozen:
    x: Any
    inner: Any = None


class Triple(list[Any]):
    """A list that is not made from one iterable."""

    def __init__(self, one: Any, two: Any, three: Any) -> None:
        super().__init__((one, two, three))


class Ordered(tuple[Any, ...]):
    """A tuple that cannot be copied in a general way."""


def _point(x: Any) -> Point:
    return Point(x)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: defaultdict(list, {"k": [x]}), id="defaultdict"),
        pytest.param(lambda x: OrderedDict(k=x), id="OrderedDict"),
        pytest.param(lambda x: Counter({"k": x}), id="Counter"),
        pytest.param(lambda x: UserDict({"k": x}), id="UserDict"),
        pytest.param(lambda x: ChainMap({"k": x}, {"j": 2}), id="ChainMap"),
        pytest.param(lambda x: {x: "v"}, id="key"),
        pytest.param(lambda x: {(x, 1): "v"}, id="tuple in key"),
        pytest.param(lambda x: Pair(x, second=(x,)), id="namedtuple"),
        pytest.param(lambda x: deque([x, 2], maxlen=2), id="deque"),
        pytest.param(lambda x: UserList([x]), id="UserList"),
        pytest.param(lambda x: Triple(x, 2, 3), id="subclass of list"),
        pytest.param(lambda x: frozenset({x}), id="frozenset"),
        pytest.param(_point, id="dataclass"),
        pytest.param(lambda x: Frozen(1, Frozen([x])), id="frozen dataclass"),
    ],
)
async def test_futures_in_containers_become_values(make: Callable[[Any], Any]) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    original = make(future)
    copied, futures = find_futures(original)
    assert futures == [future]
    assert copied is not original
    future.set_result(7)
    valued, expected = with_values(copied), make(7)
    assert valued == expected
    assert type(valued) is type(expected)
    assert find_futures(original)[1] == [future]  # unchanged


async def test_futures_in_an_array_of_objects_become_values() -> None:
    numpy = pytest.importorskip("numpy")
    one, two = (asyncio.get_running_loop().create_future() for _ in range(2))
    original = numpy.array([[one, 2], [3, two]])
    copied, futures = find_futures([original])
    assert futures == [one, two]
    one.set_result([1, 1])
    two.set_result(numpy.zeros(3))
    (valued,) = with_values(copied)
    assert valued.shape == (2, 2)
    assert valued[0, 0] == [1, 1]
    assert valued[1, 1].shape == (3,)
    assert original[0, 0] is one
    numbers = numpy.zeros(5)
    assert find_futures(numbers)[0] is numbers


async def test_futures_in_a_partial_become_values() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    copied, futures = find_futures(functools.partial(pow, future, mod=future))
    assert futures == [future]
    future.set_result(7)
    assert with_values(copied).args == (7,)
    assert with_values(copied).keywords == {"mod": 7}


@pytest.mark.parametrize("view", ["keys", "values", "items"])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
async def test_view_with_futures_becomes_list(view: str, kind: type[dict[Any, Any]]) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)
    valued = with_values(find_futures(getattr(kind({future: future}), view)())[0])
    assert valued == list(getattr({7: 7}, view)())


async def test_settings_of_containers_are_kept() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)
    groups = defaultdict(list, {"k": [future]})
    assert with_values(groups).default_factory is list
    assert with_values(deque([future], maxlen=3)).maxlen == 3


@pytest.mark.parametrize("make", [lambda: {1: 2}.values(), lambda: Point(1), lambda: Pair(1, 2)])
def test_containers_without_futures_are_not_copied(make: Callable[[], Any]) -> None:
    value = make()
    assert find_futures(value)[0] is value


@pytest.mark.parametrize("number", [1, MANY, 100])
@pytest.mark.parametrize("make", [int, object, Counter, lambda: Pair(1, 2), lambda: Point(1)])
@pytest.mark.parametrize("place", ["first", "last"])
async def test_future_among_many_objects_is_found(
    number: int, make: Callable[[], Any], place: str
) -> None:
    future = asyncio.get_running_loop().create_future()
    objects = [make() for _ in range(number)]
    values = [future, *objects] if place == "first" else [*objects, future]
    for value in (values, tuple(values), dict(enumerate(values))):
        assert find_futures(value)[1] == [future]
        assert find_futures([value] * MANY)[1] == [future]
    assert find_futures(objects) == (objects, [])


async def test_container_that_cannot_be_copied_is_refused() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(TypeError, match="future inside a Ordered, which cannot be copied"):
        find_futures([Ordered((future,))])


async def test_coroutine_is_refused_by_name(engine: WorkflowEngine, number: Any) -> None:
    async def load() -> int:
        return 1

    coroutine = load()
    with pytest.raises(TypeError, match=r"'number'.*is the coroutine '.*load'; pass its value"):
        number([coroutine])
    coroutine.close()


async def test_marked_futures_may_fail_and_others_must_not() -> None:
    loop = asyncio.get_running_loop()
    good, bad, gone, strict = (loop.create_future() for _ in range(4))
    marked = allow_failures([good, {"x": (bad, allow_failures(gone))}, strict])
    value, futures = find_futures((marked, strict, allow_failures([1])))
    assert set(futures) == {good, bad, gone, strict}
    assert list(required(futures)) == [strict]
    good.set_result(1)
    bad.set_exception(error := OSError("bad"))
    gone.cancel()
    strict.set_result(4)
    [first, inner, fourth], fifth, plain = with_values(value)
    second, third = inner["x"]
    assert (first, second, fourth, fifth, plain) == (1, error, 4, 4, [1])
    assert isinstance(third, TaskCancelledError)


@pytest.mark.parametrize("mark", [allow_failures, list], ids=["marked", "unmarked"])
async def test_futures_live_no_longer_than_their_users(mark: Callable[[Any], Any]) -> None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    end = weakref.ref(future)
    gc.collect()
    gc.disable()  # a cycle would keep large results until the next collection
    try:
        found = find_futures(mark([future]))
        del future, found
        assert end() is None
    finally:
        gc.enable()


def test_marks_without_futures_are_removed() -> None:
    assert find_futures(([allow_failures([1])], allow_failures(2))) == (([[1]], 2), [])


async def test_task_gets_marked_values_if_none_is_a_future(engine: WorkflowEngine) -> None:
    @engine.function_task
    def same(*values: Any, **named: Any) -> Any:
        return values, named

    assert await same(allow_failures([]), x=allow_failures((1,))) == (([],), {"x": (1,)})


async def test_task_runs_though_marked_dependencies_fail(engine: WorkflowEngine) -> None:
    @engine.function_task
    def invert(value: int) -> float:
        return 1 / value

    @engine.function_task
    def total(values: list[Any]) -> tuple[float, list[str]]:
        failed = [type(value).__name__ for value in values if isinstance(value, Exception)]
        return sum(value for value in values if not isinstance(value, Exception)), failed

    parts = [invert(value) for value in (1, 0, 2)]
    late = invert(4)
    late.cancel()
    assert await total(allow_failures([*parts, late])) == (
        1.5,
        ["ZeroDivisionError", "TaskCancelledError"],
    )
    with pytest.raises(DependencyFailureError):
        await total(parts)
