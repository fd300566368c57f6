"""What the head, the agents and the workers of a Dragon backend say to each other.

Head to worker, through the hub of its host: a pickled `(RUN, functions, calls)`,
`(CANCEL, tokens)`, `(RETURN,)`, `(PING,)` or `(STOP,)`. Worker to head: notes, several of which
travel together where several are there. On the Unix socket between worker and hub each message
has its length in front, and each note a header.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from types import FunctionType
from typing import Any, NamedTuple

import cloudpickle

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends.executables import Executable

__all__ = [
    "BEGUN",
    "BEGUN_URGENTLY",
    "CANCEL",
    "CANCELED",
    "FIELDS",
    "GONE",
    "HELLO",
    "PING",
    "PLAIN_VALUE",
    "PONG",
    "RAISED",
    "RETURN",
    "RETURNED",
    "RUN",
    "STOP",
    "VALUE",
    "Call",
    "Frames",
    "Note",
    "Pack",
    "dump_arguments",
    "dump_function",
    "dump_message",
    "dump_value",
    "frame",
    "is_small",
    "note",
]

RUN, CANCEL, RETURN, STOP, PING = range(5)

HELLO = 0
"""Its token is the worker's number; payload: the pickled process id, and, from the hub on, the
name of the host."""

BEGUN = 1
BEGUN_URGENTLY = 2
"""Told at once, and not only if the call takes a while: a timeout counts from it."""

VALUE = 3
"""Payload: the pickled result of a function."""

RAISED = 4
"""Payload: for `process_calls.load_outcome`."""

FIELDS = 5
"""Payload: the pickled result fields of an executable."""

PLAIN_VALUE = 6
"""The same, where pickling runs no users' code."""

CANCELED = 7
RETURNED = 8
"""The call never began here, and is the head's again."""

GONE = 9
"""From the hub: the worker's connection is closed, and this is its last note."""

PONG = 10
"""The loop that async functions share is not blocked."""

SMALL = 4096
"""Length of a string, or of a pickled function, that is pickled in no time."""

QUICK_SECONDS = 0.001
"""What else is no time."""

PLAIN = frozenset({type(None), bool, int, float, str, bytes})

Note = tuple[int, int, float, Any]
"""Token, word, seconds that the call took, payload."""

_HEADER = struct.Struct("<QBdQ")
_LENGTH = struct.Struct("<Q")


class Call(NamedTuple):
    """One task on its way to a worker.

    Attributes:
        token: Names it between head and worker.
        uid: The task's uid.
        urgent: Whether the head has to know at once that it has begun.
        concurrent: Whether it is an async function, which shares the worker with others.
        function: Position in the message's functions; -1 for an executable.
        arguments: Pickled `(args, kwargs)`; None for none.
        capture: Path of the captured output, less the suffix; None for none.
        executable: What to run, where it is an executable.
    """

    token: int
    uid: str
    urgent: bool
    concurrent: bool
    function: int
    arguments: bytes | None
    capture: str | None
    executable: Executable | None


class Pack:
    """Functions and calls of one message; each function is in it once."""

    def __init__(self) -> None:
        self.functions: list[bytes] = []
        self.calls: list[Call] = []
        self.size = 0
        self._positions: dict[int, int] = {}

    def add_function(self, uid: str, function: Any) -> int:
        """Return a function's position in the message.

        Raises:
            TaskExecutionError: It cannot be pickled.
        """
        position = self._positions.get(id(function))
        if position is None:
            data = dump_function(uid, function)
            position = self._positions[id(function)] = len(self.functions)
            self.functions.append(data)
            self.size += len(data)
        return position

    def add(self, call: Call) -> None:
        """Add a call."""
        self.calls.append(call)
        self.size += len(call.arguments or b"")

    def dump(self) -> bytes:
        """Return the message."""
        return dump_message(RUN, self.functions, [tuple(c) for c in self.calls])


_named: MutableMapping[FunctionType, bytes] = weakref.WeakKeyDictionary()
"""What travels as a name to import; that it may, cloudpickle takes long to find out."""

_light: MutableMapping[FunctionType, None] = weakref.WeakKeyDictionary()
"""Those that took no time when they were pickled last."""


def dump_function(uid: str, function: Any) -> bytes:
    """Pickle a function.

    Raises:
        TaskExecutionError: It cannot be pickled.
    """
    if type(function) is not FunctionType:
        return _dump(uid, function, "its function")
    data = _named.get(function)
    if data is None:
        _light.pop(function, None)
        began = time.perf_counter()
        data = _dump(uid, function, "its function")
        if len(data) < SMALL and time.perf_counter() - began < QUICK_SECONDS:
            _light[function] = None
        with contextlib.suppress(pickle.PicklingError, AttributeError):  # it has no such name
            if data == pickle.dumps(function, protocol=5):
                _named[function] = data
    return data


def dump_arguments(uid: str, args: Any, kwargs: Any) -> bytes | None:
    """Pickle a call's arguments, None for none.

    Raises:
        TaskExecutionError: Something in them cannot be pickled.
    """
    if not args and not kwargs:
        return None
    if _are_plain(args) and (not kwargs or _are_plain(kwargs.values())):
        return pickle.dumps((args, kwargs), protocol=5)
    return _dump(uid, (args, kwargs), "its arguments")


def is_small(task: Mapping[str, Any]) -> bool:
    """Whether a task is pickled in no time: its function is known, its arguments are plain."""
    function = task.get("function")
    if function and not (
        type(function) is FunctionType and (function in _named or function in _light)
    ):
        return False
    try:
        values = (*(task.get("args") or ()), *(task.get("kwargs") or {}).values())
    except Exception:  # not what they have to be, which pickling them tells
        return False
    return _are_plain(values) and all(len(v) < SMALL for v in values if type(v) in (str, bytes))


def _are_plain(values: Iterable[Any]) -> bool:
    return all(type(value) in PLAIN for value in values)


def _dump(uid: str, thing: Any, what: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(thing, protocol=5))
    except Exception as error:
        raise TaskExecutionError(
            uid, f"{what} cannot be pickled for another process: {error}"
        ) from error


def dump_value(uid: str, value: Any) -> tuple[int, bytes]:
    """Pickle a result; returns the word for it as well.

    Raises:
        TaskExecutionError: It cannot be pickled.
    """
    if type(value) in PLAIN:
        return PLAIN_VALUE, pickle.dumps(value, protocol=5)
    try:
        return VALUE, bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as error:
        kind = type(value).__name__
        raise TaskExecutionError(
            uid, f"its result, a {kind}, cannot be pickled: {error}"
        ) from error


def note(token: int, word: int, seconds: float = 0.0, payload: bytes = b"") -> bytes:
    """Return a note as it goes through a socket."""
    return _HEADER.pack(token, word, seconds, len(payload)) + payload


class _Plainly(pickle.Pickler):
    # A uid or a program may be of a class of its own, such as an enumeration's, which only the
    # script knows: a worker that could not load it would lose the whole message.
    def reducer_override(self, value: Any) -> Any:
        return (str, ("".join(value),)) if isinstance(value, str) else NotImplemented


def dump_message(*message: Any) -> bytes:
    """Return a message to a worker, such as `(STOP,)`."""
    data = io.BytesIO()
    _Plainly(data, protocol=5).dump(message)
    return data.getvalue()


def frame(message: bytes) -> bytes:
    """Return a message as it goes through a socket."""
    return _LENGTH.pack(len(message)) + message


class Frames:
    """Notes out of the pieces in which they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Note]:
        """Add a piece and yield the notes that are complete."""
        whole: bytes | bytearray = data
        if self._rest:
            self._rest += data
            whole = self._rest
        start, end = 0, len(whole)
        while end - start >= _HEADER.size:
            token, word, seconds, length = _HEADER.unpack_from(whole, start)
            if end - start - _HEADER.size < length:
                break
            start += _HEADER.size
            yield token, word, seconds, bytes(whole[start : start + length])
            start += length
        if start or whole is data:
            self._rest = bytearray(whole[start:])
