"""What the head and its Dragon workers say to each other: pickled tuples, many tasks in each.

Head to worker: `(RUN, functions, calls)`, `(CANCEL, tokens)`, `(RETURN,)`, `(STOP,)`.
Worker to head: `(worker, notes, busy_seconds)`, where a note is `(token, word, payload)`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any, NamedTuple

import cloudpickle

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends.executables import Executable

__all__ = [
    "BEGUN",
    "CANCEL",
    "CANCELED",
    "FIELDS",
    "PICKLED",
    "RAISED",
    "READY",
    "RETURN",
    "RETURNED",
    "RUN",
    "STOP",
    "TOGETHER",
    "VALUE",
    "Call",
    "Pack",
    "dump_arguments",
    "pack_value",
]

RUN, CANCEL, RETURN, STOP = range(4)

READY = 0
"""Payload: the worker's pid, its queue, and what its dead predecessors had begun."""

BEGUN = 1
VALUE = 2
"""Payload: the result itself, of a type that can always be pickled and rebuilt."""

PICKLED = 3
RAISED = 4
"""Payload: bytes for `process_calls.load_outcome`."""

FIELDS = 5
"""Payload: the result fields of an executable."""

CANCELED = 6
RETURNED = 7
"""The task never started here, and is the head's again."""

TOGETHER = 32
"""Calls or notes that make a message worth sending."""

PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class Call(NamedTuple):
    """One task on its way to a worker.

    Attributes:
        token: Names it between head and worker.
        slot: Its place in the worker's record of what has begun.
        uid: The task's uid.
        urgent: Whether the head has to know at once that it has begun, since its timeout counts
            from then.
        concurrent: Whether it is an async function, which shares the worker with others.
        function: Position in the message's functions; -1 for an executable.
        arguments: Pickled `(args, kwargs)`; None for none.
        capture: Path of the captured output, less the suffix; None for none.
        executable: What to run, where it is an executable.
    """

    token: int
    slot: int
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
            data = _dump(uid, function, "its function")
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
        return pickle.dumps((RUN, self.functions, [tuple(c) for c in self.calls]), protocol=5)


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


def _are_plain(values: Iterable[Any]) -> bool:
    return all(type(value) in PLAIN for value in values)


def _dump(uid: str, thing: Any, what: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(thing, protocol=5))
    except Exception as error:
        raise TaskExecutionError(
            uid, f"{what} cannot be pickled for another process: {error}"
        ) from error


def pack_value(uid: str, value: Any) -> tuple[int, Any]:
    """Return the word and payload for a result.

    Raises:
        TaskExecutionError: It cannot be pickled.
    """
    if type(value) in PLAIN:
        return VALUE, value
    try:
        return PICKLED, bytes(cloudpickle.dumps((value, None, None), protocol=5))
    except Exception as error:
        kind = type(value).__name__
        raise TaskExecutionError(
            uid, f"its result, a {kind}, cannot be pickled: {error}"
        ) from error
