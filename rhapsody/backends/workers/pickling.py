"""Functions, arguments, results and errors of calls, pickled for another process."""

from __future__ import annotations

import contextlib
import errno
import pickle
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import FunctionType, TracebackType
from typing import Any, TypeAlias

from rhapsody.backends.data.packing import Packed, is_plain
from rhapsody.backends.data.pickled_functions import PickledFunctions
from rhapsody.backends.data.pickler import dump_by_value
from rhapsody.errors import TaskExecutionError, describe_error, own_args

__all__ = [
    "Pack",
    "RemoteTraceback",
    "dump_arguments",
    "dump_call",
    "dump_error",
    "dump_function",
    "dump_outcome",
    "dump_value",
    "load_error",
    "load_outcome",
    "not_rebuilt",
    "pickles_quickly",
]

Pack: TypeAlias = Callable[[Any], bytes | Packed]
"""Pickles a value, a large one into a segment: `Packer.pack`."""

SMALL_BYTES = 4096
"""Size of strings and of pickled functions that take no noticeable time."""

QUICK_SECONDS = 0.001
"""Longest time in which a function counts as quickly pickled."""

_importable: MutableMapping[FunctionType, bytes] = weakref.WeakKeyDictionary()
"""Functions that are pickled as a name to import; cloudpickle takes long to find this out."""

_by_value = PickledFunctions()

_quick: MutableMapping[FunctionType, None] = weakref.WeakKeyDictionary()
"""Functions that were pickled quickly the last time."""


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in another process, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def dump_function(uid: str, function: Any) -> bytes:
    """Pickle a function.

    Raises:
        TaskExecutionError: The function cannot be pickled.
    """
    if type(function) is not FunctionType:
        return _dump_here(uid, function, "its function")
    data = _importable.get(function)
    if data is None:
        _quick.pop(function, None)
        began = time.perf_counter()
        data = _by_value.get(function, lambda: _dump_here(uid, function, "its function"))
        if len(data) < SMALL_BYTES and time.perf_counter() - began < QUICK_SECONDS:
            _quick[function] = None
        with contextlib.suppress(pickle.PicklingError, AttributeError):  # not importable
            if data == pickle.dumps(function, protocol=5):
                _importable[function] = data
    return data


def dump_arguments(
    uid: str, args: Any, kwargs: Any, pack: Pack | None = None
) -> bytes | Packed | None:
    """Pickle the arguments of a call; None if there are none.

    Args:
        uid: The task's uid.
        args: Positional arguments.
        kwargs: Keyword arguments.
        pack: Pickles arguments that may be large. None: they travel in the message.

    Raises:
        TaskExecutionError: An argument cannot be pickled.
    """
    if not args and not kwargs:
        return None
    if _are_plain(args) and (not kwargs or _are_plain(kwargs.values())):
        return pickle.dumps((args, kwargs), protocol=5)
    return _dump(uid, (args, kwargs), "its arguments", pack)


def dump_call(uid: str, function: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    """Pickle a call with its uid, closures and lambdas included.

    Raises:
        TaskExecutionError: The function or an argument cannot be pickled.
    """
    return _dump_here(uid, (uid, function, args, kwargs), "its function or arguments")


def dump_value(uid: str, value: Any, pack: Pack | None = None) -> bytes | Packed:
    """Pickle the result of a call.

    Args:
        uid: The task's uid.
        value: The result.
        pack: Pickles results that may be large. None: they travel in the message.

    Raises:
        TaskExecutionError: The result cannot be pickled.
    """
    return _dump(uid, value, f"its result, a {type(value).__name__},", pack)


def dump_outcome(uid: str, value: Any) -> bytes:
    """Pickle the result of a call as an outcome for `load_outcome`.

    Raises:
        TaskExecutionError: The result cannot be pickled.
    """
    return _dump_here(uid, (value, None, None), f"its result, a {type(value).__name__},")


def dump_error(uid: str, error: BaseException) -> bytes:
    """Pickle an exception as an outcome, or a description of one that cannot be rebuilt."""
    remote = _format(error)
    # A future cannot hold a StopIteration; a BaseException would end the program's loop.
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        plain = type(error).__reduce__ is BaseException.__reduce__
        for form in (error, _Parts(error)) if plain else (error,):
            with contextlib.suppress(BaseException):  # its own code may even exit
                data = dump_by_value((None, form, remote))
                pickle.loads(data)  # many exceptions pickle but cannot be rebuilt
                return data
    stand_in = TaskExecutionError(uid, f"it raised {describe_error(error)}")
    return pickle.dumps((None, stand_in, remote))


def _format(error: BaseException) -> str:
    frames = _without_worker(error.__traceback__)
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # attributes of the user's own exceptions may raise
        return "".join(traceback.format_tb(frames)) + describe_error(error)


def _without_worker(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the worker that called the function."""
    rest = frames
    while rest is not None and rest.tb_frame.f_globals.get("__package__") == __package__:
        rest = rest.tb_next
    return frames if rest is None else rest


class _Parts:
    """An exception that is rebuilt without a call of its constructor.

    An exception is pickled as a call of its class with its `args`. That fails if the constructor
    has other arguments, as one that makes the message from two values.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        return _rebuild, (type(error), own_args(error), dict(error.__dict__))


def _rebuild(cls: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def load_outcome(uid: str, data: bytes) -> Any:
    """Return the result of a call, or raise its exception with the remote traceback as cause.

    Raises:
        TaskExecutionError: The result cannot be rebuilt in this process.
    """
    try:
        value, error, remote = pickle.loads(data)
    except BaseException as failure:  # unpickling runs user code, which may even exit
        raise not_rebuilt(uid, failure) from failure
    if error is None:
        return value
    raise _with_remote_traceback(error, remote)


def load_error(data: bytes) -> BaseException:
    """Return the exception of a call, with the remote traceback as its cause."""
    _, error, remote = pickle.loads(data)
    return _with_remote_traceback(error, remote)


def not_rebuilt(uid: str, failure: BaseException) -> TaskExecutionError:
    """Return the error of a task whose result raises an exception when it is unpickled."""
    error = TaskExecutionError(
        uid, f"its result cannot be rebuilt from its pickle: {describe_error(failure)}"
    )
    error.__cause__ = failure
    return error


def _with_remote_traceback(error: BaseException, remote: str) -> BaseException:
    if error.__cause__ is None:
        # Not an assignment: the exception may be a frozen dataclass.
        BaseException.__setattr__(error, "__cause__", RemoteTraceback(remote))
    return error


def pickles_quickly(task: Mapping[str, Any]) -> bool:
    """Return whether pickling a task takes no noticeable time and runs no user code."""
    function = task.get("function")
    if function and not (
        type(function) is FunctionType and (function in _importable or function in _quick)
    ):
        return False
    try:
        values = (*(task.get("args") or ()), *(task.get("kwargs") or {}).values())
    except Exception:  # not a sequence or a mapping; `dump_arguments` raises the error
        return False
    return _are_plain(values) and all(
        len(value) < SMALL_BYTES for value in values if type(value) in (str, bytes)
    )


def _are_plain(values: Iterable[Any]) -> bool:
    return all(map(is_plain, values))


def _dump_here(uid: str, thing: Any, what: str) -> bytes:
    data = _dump(uid, thing, what, None)
    assert isinstance(data, bytes)
    return data


def _dump(uid: str, thing: Any, what: str, pack: Pack | None) -> bytes | Packed:
    try:
        return dump_by_value(thing) if pack is None else pack(thing)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        raise TaskExecutionError(
            uid, f"{what} cannot be {'stored' if full else 'pickled'} for another process: {error}"
        ) from error
