"""The connections of one node's workers, in the program or in that node's agent.

Workers connect to a Unix socket. The kernel keeps what a worker wrote before it died, so that the
program knows which calls the worker was running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import struct
import threading
import weakref
from collections.abc import Callable

from rhapsody.backends.workers.messages import (
    DISCONNECTED,
    READY,
    RUNNING,
    WorkerMessage,
    WorkerMessageDecoder,
    frame,
)

__all__ = ["Connections", "is_of_this_user"]

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.005
"""How long a call must run before the program is told that it runs."""

ACCEPT_SECONDS = 1.0
"""Time until the next attempt after a connection could not be accepted, for example for lack of
file descriptors."""

READ_BYTES = 1 << 18
"""Maximum number of bytes read from a socket at a time."""


def is_of_this_user(connection: socket.socket) -> bool:
    """Return whether the peer of a Unix socket is a process of the same user."""
    credentials = struct.Struct("3i")  # process id, user id, group id
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return bool(credentials.unpack(data)[1] == os.geteuid())


class Connections:
    """The connections of one node's workers; belongs to the loop that runs when it is made.

    Args:
        node: The node's name.
        address: Unix socket to listen on. An abstract one, since a killed process would leave a
            file behind; instead of checking file permissions, both ends check the peer's user.
            None: connections are given to `adopt`.
        on_messages: Called on the loop with the number of a worker and the messages that arrived
            from it.

    Attributes:
        node: The node's name.
        on_messages: As given.
        by_number: Connections of the workers that have sent READY, by the worker's number.
        open: All connections.
    """

    def __init__(
        self,
        node: str,
        address: str | None,
        on_messages: Callable[[int, list[WorkerMessage]], None],
    ) -> None:
        self.node = node
        self.on_messages = on_messages
        self.by_number: dict[int, _WorkerConnection] = {}
        self.open: set[_WorkerConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._with_new_calls: dict[_WorkerConnection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if address is None:
            self._listener.close()
        else:
            self._listener.bind(address)
            self._listener.listen(1024)
            self._listener.setblocking(False)
            self._listen()
        _instances.add(self)

    def close(self) -> None:
        """Close the listening socket and all connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for connection in tuple(self.open):
            connection.close()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # the socket stays readable, and the loop would spin
            logger.error("a worker's connection could not be accepted and is retried: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_SECONDS, self._listen)
            return
        if is_of_this_user(connection):
            self.open.add(_WorkerConnection(self, connection))
        else:
            connection.close()

    def adopt(self, number: int, connection: socket.socket) -> None:
        """Take the connection of a worker that inherited the other end of it."""
        self.by_number[number] = worker = _WorkerConnection(self, connection, number)
        self.open.add(worker)

    def disconnect(self, number: int) -> None:
        """Disconnect a worker, whose last messages are still read."""
        connection = self.by_number.get(number)
        if connection is not None:
            connection.disconnect()

    def send(self, number: int, message: bytes) -> None:
        """Send a message to a worker, unless its connection is closed; from any thread."""
        connection = self.by_number.get(number)
        if connection is not None:
            connection.write(frame(message))

    def report_running_later(self, connection: _WorkerConnection) -> None:
        """Report the connection's new calls as running, if they still run after a moment."""
        self._with_new_calls[connection] = None
        if self._timer is None:
            self._timer = self._loop.call_later(LINGER_SECONDS, self._report_running)

    def _report_running(self) -> None:
        self._timer = None
        connections, self._with_new_calls = self._with_new_calls, {}
        for connection in connections:
            connection.report_running()

    def close_in_child(self) -> None:
        """Close the copies in a forked child; workers would not notice the end of its parent."""
        for connection in self.open:
            connection.close_in_child()
        _close_in_child(self._listener)


class _WorkerConnection:
    """One worker's connection: read on the loop, written to from any thread."""

    def __init__(
        self, connections: Connections, connection: socket.socket, number: int | None = None
    ) -> None:
        self._connections = connections
        self._socket = connection
        self._decoder = WorkerMessageDecoder()
        self._number = number
        self._new_calls: dict[int, None] = {}
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._messages: list[WorkerMessage] = []
        connection.setblocking(False)
        self._loop.add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for message in self._decoder.feed(data):
            call_id, kind = message[:2]
            if kind == RUNNING:
                self._new_calls[call_id] = None
                continue
            if kind == READY:
                self._number = call_id
                self._connections.by_number[call_id] = self
                origin = pickle.loads(message[3]), self._connections.node
                message = (call_id, kind, 0.0, pickle.dumps(origin))
            self._new_calls.pop(call_id, None)
            self._messages.append(message)
        if not data:
            self.close()
            if self._number is not None:
                self._add_running()
                self._messages.append((0, DISCONNECTED, 0.0, b""))
                del self._connections.by_number[self._number]
        self._pass_on()
        if self._new_calls:
            self._connections.report_running_later(self)

    def disconnect(self) -> None:
        """End the connection, as the death of the worker does."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connections.open.discard(self)
        self._loop.remove_reader(self._socket)
        with self._lock:
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def close_in_child(self) -> None:
        """Close the copy in a forked child."""
        _close_in_child(self._socket)

    def report_running(self) -> None:
        """Report the new calls as running."""
        self._add_running()
        self._pass_on()

    def _add_running(self) -> None:
        new_calls, self._new_calls = self._new_calls, {}
        self._messages += [(call_id, RUNNING, 0.0, b"") for call_id in new_calls]

    def _pass_on(self) -> None:
        if self._number is not None and self._messages:
            messages, self._messages = self._messages, []
            self._connections.on_messages(self._number, messages)

    def write(self, message: bytes) -> None:
        """Send a message; what the socket does not take at once is sent from the loop."""
        with self._lock:
            if self._socket.fileno() < 0:
                return
            if not self._unsent:
                message = message[self._send(message) :]
                if message:
                    self._loop.call_soon_threadsafe(self._write_rest)
            self._unsent += message

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # disconnected, which reading detects as well
            return len(data)

    def _write_rest(self) -> None:
        with self._lock:
            if self._socket.fileno() < 0:
                return
            del self._unsent[: self._send(self._unsent)]
            if self._unsent:
                self._loop.add_writer(self._socket, self._write_rest)
            else:
                self._loop.remove_writer(self._socket)


def _close_in_child(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        os.close(connection.detach())


_instances: weakref.WeakSet[Connections] = weakref.WeakSet()


def _close_all_in_child() -> None:
    for connections in _instances:
        connections.close_in_child()


os.register_at_fork(after_in_child=_close_all_in_child)
