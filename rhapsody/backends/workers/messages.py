"""The messages between the program and its workers.

To a worker: a pickled tuple, `(RUN, functions, calls)`, `(CANCEL, call_ids)`, `(GIVE_BACK,)`,
`(PING,)`, `(TAKE_BACK, segment, reusable)`, `(TRIM,)` or `(STOP,)`, preceded by its length. From a
worker: a header with call id, kind, seconds and the length of the payload, then the payload.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from rhapsody.backends.data.packing import Packed, is_plain
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.workers.pickling import (
    Pack,
    dump_function,
    dump_value,
    load_error,
)

__all__ = [
    "CANCEL",
    "CANCELED",
    "DISCONNECTED",
    "DROPPED",
    "FIELDS",
    "GIVEN_BACK",
    "GIVE_BACK",
    "MEMORY",
    "NOT_REBUILT",
    "PACKED_VALUE",
    "PING",
    "PLAIN_VALUE",
    "PONG",
    "RAISED",
    "READY",
    "RUN",
    "RUNNING",
    "RUNNING_URGENT",
    "STOP",
    "TAKE_BACK",
    "TRIM",
    "VALUE",
    "Call",
    "MessageBatch",
    "RunMessage",
    "WorkerMessage",
    "WorkerMessageDecoder",
    "encode_message",
    "encode_value",
    "encode_worker_message",
    "frame",
    "load_payload",
    "loads_quickly",
]

RUN, CANCEL, GIVE_BACK, STOP, PING, TAKE_BACK, TRIM = range(7)
"""Kinds of messages to a worker."""

READY = 0
"""Has the worker's number as call id. Payload: the pickled process id; `Connections` adds the name
of the node."""

RUNNING = 1
"""The call runs; passed on only if the call takes a while."""

RUNNING_URGENT = 2
"""The call runs; passed on at once, because a timeout counts from it."""

VALUE = 3
"""Payload: the pickled result of a function."""

RAISED = 4
"""Payload: for `pickling.load_error`."""

FIELDS = 5
"""Payload: the pickled result fields of an executable."""

PLAIN_VALUE = 6
"""Payload as for VALUE; unpickling it runs no user code."""

CANCELED = 7
"""Payload: the pickled result fields of an interrupted executable, or nothing."""

GIVEN_BACK = 8
"""The call never ran here; the scheduler gives it to another worker."""

DISCONNECTED = 9
"""From `Connections`: the worker's connection is closed. The last message of a worker."""

PONG = 10
"""The event loop of the worker's async functions is not blocked."""

PACKED_VALUE = 11
"""Payload: the pickled `Packed` of a result with large data; loaded as VALUE."""

DROPPED = 12
"""Payload: the pickled names of segments that the worker uses no longer, each with whether it may
be written again; see `DataStore.drop`."""

MEMORY = 13
"""The call, which ends now, had the worker use that much resident memory: bytes in place of the
seconds."""

NOT_REBUILT = 14
"""From `load_payload`: the exception that unpickling the result raised in this process."""

QUICK_BYTES = 65536
"""Size of a payload that is unpickled on the service loop, if that runs no user code."""

WorkerMessage: TypeAlias = tuple[int, int, float, Any]
"""A message from a worker: call id, kind, seconds that the call took, payload."""

MessageBatch: TypeAlias = tuple[int, list[WorkerMessage]]
"""The number of a worker, and messages from it."""

_HEADER = struct.Struct("<QBdQ")
_LENGTH = struct.Struct("<Q")


class Call(NamedTuple):
    """One task on its way to a worker.

    Attributes:
        call_id: Identifies the call among those of its worker.
        uid: The task's uid.
        urgent: Whether the program must know at once that the call runs.
        concurrent: Whether it is an async function, which shares the worker with others.
        function: Index into the functions of the message; -1 for an executable.
        arguments: Pickled `(args, kwargs)`, with large data in segments; None for no arguments.
        capture: Path of the captured output without its suffix; None: not captured.
        executable: What to run; None for a function.
    """

    call_id: int
    uid: str
    urgent: bool
    concurrent: bool
    function: int
    arguments: bytes | Packed | None
    capture: str | None
    executable: Executable | None


class RunMessage:
    """A RUN message in the making: calls, and each of their functions once."""

    def __init__(self) -> None:
        self.functions: list[bytes] = []
        self.calls: list[Call] = []
        self.size = 0
        self._indices: dict[int, int] = {}

    def add_function(self, uid: str, function: Any) -> int:
        """Add a function, unless it is in the message already, and return its index.

        Raises:
            TaskExecutionError: The function cannot be pickled.
        """
        index = self._indices.get(id(function))
        if index is None:
            data = dump_function(uid, function)
            index = self._indices[id(function)] = len(self.functions)
            self.functions.append(data)
            self.size += len(data)
        return index

    def add(self, call: Call) -> None:
        """Add a call."""
        self.calls.append(call)
        if isinstance(call.arguments, bytes):
            self.size += len(call.arguments)

    def encode(self) -> bytes:
        """Return the message as bytes."""
        return encode_message(RUN, self.functions, [tuple(call) for call in self.calls])


class _PlainTextPickler(pickle.Pickler):
    # A uid or a program may be an instance of a subclass of str that only the script knows, such
    # as an enumeration's. A worker could not load it, and would lose the whole message.
    def reducer_override(self, value: Any) -> Any:
        return (str, ("".join(value),)) if isinstance(value, str) else NotImplemented


def encode_message(*message: Any) -> bytes:
    """Return a message to a worker, such as `(STOP,)`, as bytes."""
    data = io.BytesIO()
    _PlainTextPickler(data, protocol=5).dump(message)
    return data.getvalue()


def frame(message: bytes) -> bytes:
    """Return a message to a worker preceded by its length."""
    return _LENGTH.pack(len(message)) + message


def encode_worker_message(
    call_id: int, kind: int, seconds: float = 0.0, payload: bytes = b""
) -> bytes:
    """Return a message from a worker as bytes."""
    return _HEADER.pack(call_id, kind, seconds, len(payload)) + payload


def encode_value(uid: str, value: Any, pack: Pack | None = None) -> tuple[int, bytes]:
    """Pickle the result of a function; return the kind of its message and the payload.

    Args:
        uid: The task's uid.
        value: The result.
        pack: Pickles results that may be large. None: they travel in the message.

    Raises:
        TaskExecutionError: The result cannot be pickled.
    """
    if is_plain(value):
        return PLAIN_VALUE, pickle.dumps(value, protocol=5)
    data = dump_value(uid, value, pack)
    if isinstance(data, bytes):
        return VALUE, data
    return PACKED_VALUE, pickle.dumps(data, protocol=5)


class WorkerMessageDecoder:
    """Decodes the messages of a worker from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[WorkerMessage]:
        """Add a piece and yield the messages that are complete."""
        whole: bytes | bytearray = data
        if self._rest:
            self._rest += data
            whole = self._rest
        start, end = 0, len(whole)
        while end - start >= _HEADER.size:
            call_id, kind, seconds, length = _HEADER.unpack_from(whole, start)
            if end - start - _HEADER.size < length:
                break
            start += _HEADER.size
            yield call_id, kind, seconds, bytes(whole[start : start + length])
            start += length
        if start or whole is data:
            self._rest = bytearray(whole[start:])


def loads_quickly(message: WorkerMessage) -> bool:
    """Return whether loading the payload takes no noticeable time and runs no user code."""
    return message[1] not in (VALUE, PACKED_VALUE, RAISED) and len(message[3]) < QUICK_BYTES


def load_payload(
    call_id: int,
    kind: int,
    seconds: float,
    payload: Any,
    load: Callable[[Packed], Any] | None = None,
) -> WorkerMessage:
    """Return a message from a worker with its payload unpickled.

    The payload of RAISED becomes the exception. A payload that cannot be loaded makes it
    NOT_REBUILT. `load` loads a result with large data.
    """
    try:
        if kind in (VALUE, PLAIN_VALUE):
            return call_id, VALUE, seconds, pickle.loads(payload)
        if kind == PACKED_VALUE and load is not None:
            return call_id, VALUE, seconds, load(pickle.loads(payload))
        if kind in (FIELDS, READY, DROPPED) or (kind == CANCELED and payload):
            payload = pickle.loads(payload)
        elif kind == RAISED:
            payload = load_error(payload)
    except BaseException as error:  # unpickling runs user code, which may even exit
        return call_id, NOT_REBUILT, seconds, BaseException.with_traceback(error, None)
    return call_id, kind, seconds, payload
