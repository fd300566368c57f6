"""The futures inside the arguments of a call: their search, and their replacement by values."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from copy import copy
from typing import Any

from rhapsody.errors import TaskCancelledError

__all__ = [
    "AllowFailures",
    "Tolerated",
    "allow_failures",
    "call_with_values",
    "find_futures",
    "find_in_call",
    "is_tolerated",
    "required",
    "with_values",
]

PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
"""Types of most arguments, which contain nothing."""

MANY = 16
"""Objects in a container from which on it is faster to look at each of their types once."""

EMPTY: OrderedDict[Any, Any] = OrderedDict()
VIEWS: tuple[type, ...] = (
    *(type({}.keys()), type({}.values()), type({}.items())),
    *(type(EMPTY.keys()), type(EMPTY.values()), type(EMPTY.items())),
)
LISTS = (list, UserList, deque)
SETS = (set, frozenset)
MAPPINGS = (dict, UserDict, ChainMap)
BUILT_IN = frozenset({dict, frozenset, list, set, tuple})
SEQUENCES = (*LISTS, *SETS, tuple, *VIEWS)


class AllowFailures:
    """An argument whose futures may fail; see `allow_failures`.

    Args:
        value: A future, or a container of futures.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def allow_failures(futures: Any) -> Any:
    """Mark an argument of a task: the task runs even if these futures fail or are cancelled.

    The function gets the same containers, with the result of each future that succeeded, the
    exception of each that failed, and a `TaskCancelledError` for each that was cancelled. Works on
    Rhapsody's engine.

    Args:
        futures: A future, or a list, tuple or dict of futures, at any depth.
    """
    return AllowFailures(futures)


class Tolerated(list[asyncio.Future[Any]]):
    """Futures, of which some may fail.

    Attributes:
        tolerated: Those that may fail.
    """

    tolerated: frozenset[asyncio.Future[Any]] = frozenset()


def required(futures: Sequence[asyncio.Future[Any]]) -> Sequence[asyncio.Future[Any]]:
    """Return the futures that must succeed, of those that `find_futures` returned."""
    if not isinstance(futures, Tolerated):
        return futures
    return [future for future in futures if future not in futures.tolerated]


def is_tolerated(future: asyncio.Future[Any], futures: Sequence[asyncio.Future[Any]]) -> bool:
    """Return whether one of the futures that `find_futures` returned may fail."""
    return isinstance(futures, Tolerated) and future in futures.tolerated


def find_futures(value: Any) -> tuple[Any, list[asyncio.Future[Any]]]:
    """Find the futures in a value, at any depth of containers, dataclasses and partials.

    Returns:
        The value, in which containers with futures are copies, so that later changes by the caller
        have no effect; and the futures, each once. The copy of a dict view is a list.

    Raises:
        TypeError: The value contains a coroutine, or a container with futures cannot be copied.
    """
    search = _Search()
    new = _replace(value, search.note, search.find_in_mark)
    if not search.in_marks:
        return new, list(search.found)
    futures = Tolerated(search.found)
    futures.tolerated = frozenset(search.in_marks - search.strict)
    return new, futures


def find_in_call(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], Sequence[asyncio.Future[Any]]]:
    """Find the futures in the arguments of a call, as `find_futures` does.

    Returns:
        `(args, kwargs)`, with copies of containers with futures; and the futures.
    """
    arguments = (*args, *kwargs.values()) if kwargs else args
    futures: dict[asyncio.Future[Any], None] = {}
    for argument in arguments:
        if type(argument) in PLAIN:
            continue
        if not _is_future(argument):
            return find_futures((args, kwargs))
        futures[argument] = None
    # Many calls have futures only: another tuple for each would take memory.
    return (args, kwargs), arguments if len(futures) == len(arguments) else tuple(futures)


def call_with_values(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call in which every future is replaced, as by `with_values`."""
    values = tuple([_value_of(argument) for argument in args])
    if kwargs:
        kwargs = {name: _value_of(argument) for name, argument in kwargs.items()}
    return values, kwargs


def _value_of(argument: Any) -> Any:
    if type(argument) in PLAIN:
        return argument
    return _result_of(argument) if _is_future(argument) else with_values(argument)


def _result_of(future: asyncio.Future[Any]) -> Any:
    """Return the result of a future that is done, or what stands for one that its backend keeps."""
    kept = getattr(future, "kept", None)
    return future.result() if kept is None else kept.argument


def _is_future(value: Any) -> bool:
    return isinstance(value, asyncio.Future) or asyncio.isfuture(value)


class _Search:
    # Not functions inside of `find_futures`: one that calls itself is a reference cycle, which
    # would keep the futures, and the data of their results, until the next garbage collection.

    def __init__(self) -> None:
        self.found: dict[asyncio.Future[Any], None] = {}
        self.strict: set[asyncio.Future[Any]] = set()
        self.in_marks: set[asyncio.Future[Any]] = set()

    def note(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        self.found[future] = None
        self.strict.add(future)
        return future

    def _note_in_mark(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        self.found[future] = None
        self.in_marks.add(future)
        return future

    def _without_marks(self, value: Any) -> Any:
        return _replace(value, self._note_in_mark, self._without_marks)

    def find_in_mark(self, value: Any) -> Any:
        new = self._without_marks(value)
        return AllowFailures(new) if self.in_marks else new


def with_values(value: Any) -> Any:
    """Return a value in which every future is replaced by its result; all futures are done.

    Inside of `AllowFailures` a future that failed is replaced by its exception. Containers without
    futures are not copied.
    """
    return _replace(value, _result_of, _with_outcomes)


def _with_outcomes(value: Any) -> Any:
    return _replace(value, _outcome, _with_outcomes)


def _outcome(future: asyncio.Future[Any]) -> Any:
    if getattr(future, "kept", None) is not None:
        return _result_of(future)
    if future.cancelled():
        return TaskCancelledError(str(getattr(future, "uid", future)))
    error = future.exception()
    return future.result() if error is None else error


NewFor = Callable[[asyncio.Future[Any]], Any]


def _replace(value: Any, new_for: NewFor, new_for_marked: Callable[[Any], Any]) -> Any:
    new, changed = _replace_each((value,), new_for, new_for_marked, set())
    return new[0] if changed else value


def _replace_each(
    values: Iterable[Any],
    new_for: NewFor,
    new_for_marked: Callable[[Any], Any],
    inside: set[int],
) -> tuple[list[Any], bool]:
    """Return the values with futures replaced, and whether there were any futures."""
    new, changed = [], False
    for value in values:
        kind: Any = type(value)
        built_in = kind in BUILT_IN
        if kind in PLAIN or not (built_in or _may_contain(kind)):
            new.append(value)
            continue
        if not built_in and _is_future(value):
            changed = True
            new.append(new_for(value))
            continue
        if kind is AllowFailures:
            changed = True
            new.append(new_for_marked(value.value))
            continue
        if built_in and _is_plain(value):  # 20 times as fast as the search in large ones
            new.append(value)
            continue
        items = _items_of(value) if not built_in or kind is dict else value
        if items and id(value) not in inside:
            inside.add(id(value))
            items, renewed = _replace_each(items, new_for, new_for_marked, inside)
            inside.discard(id(value))
            if renewed:
                changed = True
                value = _copy_with(value, items)
        new.append(value)
    return new, changed


def _is_plain(container: Any) -> bool:
    """Return whether no object in a built-in container may be a future or contain some."""
    values = container.values() if type(container) is dict else ()
    if PLAIN.issuperset(map(type, container)) and PLAIN.issuperset(map(type, values)):
        return True
    if len(container) < MANY:
        return False
    kinds = {*map(type, container), *map(type, values)}
    return not any(map(_may_contain, kinds - PLAIN))


@functools.lru_cache(maxsize=1024)  # the checks of abstract classes are slow
def _may_contain(kind: type) -> bool:
    """Return whether objects of a type are futures or coroutines, or may contain some."""
    return (
        hasattr(kind, "_asyncio_future_blocking")  # as `asyncio.isfuture` looks for it
        or issubclass(kind, (*MAPPINGS, *SEQUENCES, Coroutine, AllowFailures))
        or hasattr(kind, "__dataclass_fields__")
        or kind is functools.partial
        or _is_array(kind)
    )


def _is_array(kind: type) -> bool:
    """Return whether a type is NumPy's array, which need not be installed."""
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy"


def _items_of(value: Any) -> Any:
    """Return what a value contains; for a mapping the keys and then the values."""
    if _is_array(type(value)):
        return list(value.flat) if value.dtype == object else ()
    if type(value) is functools.partial:
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MAPPINGS):
        return (*value, *value.values())
    if isinstance(value, SEQUENCES):
        return value
    if hasattr(type(value), "__dataclass_fields__"):
        return [getattr(value, name, None) for name in value.__dataclass_fields__]
    if isinstance(value, Coroutine):
        name = getattr(value, "__qualname__", type(value).__name__)
        raise TypeError(
            f"an argument is the coroutine '{name}'; pass its value, with 'await', or a task that "
            "runs it, made by asyncio.create_task"
        )
    return ()


def _copy_with(value: Any, items: list[Any]) -> Any:
    """Return a copy of a value with other items, in the order of `_items_of`.

    Raises:
        TypeError: The value cannot be copied.
    """
    kind: Any = type(value)
    try:
        if kind in BUILT_IN and kind is not dict:
            return kind(items)
        if isinstance(value, MAPPINGS):
            return _copy_mapping(value, items)
        if isinstance(value, VIEWS):
            return items
        if kind is functools.partial:
            end = len(items) - len(value.keywords)
            keywords = dict(zip(value.keywords, items[end:], strict=True))
            return functools.partial(items[0], *items[1:end], **keywords)
        if isinstance(value, (tuple, frozenset)):
            return _copy_immutable(value, items)
        new = copy(value)
        if _is_array(kind):
            places = itertools.product(*map(range, value.shape))
            for place, item in zip(places, items, strict=True):
                new[place] = item
        elif isinstance(value, LISTS):
            new.clear()
            new.extend(items)
        elif isinstance(value, SETS):
            new.clear()
            new.update(items)
        else:
            for name, item in zip(value.__dataclass_fields__, items, strict=True):
                if hasattr(value, name):
                    object.__setattr__(new, name, item)  # also if the dataclass is frozen
        return new
    except Exception as error:
        raise TypeError(
            f"an argument contains a future inside a {type(value).__qualname__}, which cannot be "
            f"copied with its value ({error}); pass a list, tuple or dict"
        ) from error


def _copy_mapping(value: Any, items: list[Any]) -> Any:
    half = len(items) // 2
    pairs = zip(items[:half], items[half:], strict=True)
    if type(value) is dict:
        return dict(pairs)
    new = copy(value)
    new.clear()
    for key, item in pairs:
        new[key] = item
    return new


def _copy_immutable(value: Any, items: list[Any]) -> Any:
    make = getattr(type(value), "_make", None)  # of a named tuple
    if make is None:
        raise TypeError("it is a subclass of an immutable type")
    return make(items)
