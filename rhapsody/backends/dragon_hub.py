"""The connections of one host's workers: in that host's agent, or in the head itself.

A worker speaks through a Unix socket, where what was written is kept whatever becomes of the
writer. That the head needs, to know what a worker that died had begun.
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
from dataclasses import dataclass
from typing import TypeAlias

from rhapsody.backends import dragon_wire as wire

__all__ = ["Address", "Bundle", "Hub", "is_of_this_user"]

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.005
"""How long a call may run before the head is told that it has begun."""

ACCEPT_SECONDS = 1.0
"""Time until the next try where a connection could not be taken, for want of descriptors say."""

READ_BYTES = 1 << 18
"""Most bytes taken from a socket at a time."""

Bundle: TypeAlias = tuple[int, list[wire.Note]]
"""A worker's number, and notes of its."""


@dataclass(frozen=True)
class Address:
    """Where the hubs of one backend listen; on each host a place of its own.

    Attributes:
        name: Unique name of the backend's run.
    """

    name: str

    @property
    def socket(self) -> str:
        """The socket that workers of this host connect to: a name without a file.

        A file would be left behind by a process that is killed. Instead of its permissions both
        ends ask who the other one is.
        """
        from dragon.utils import host_id

        return f"\0{self.name}-{host_id():x}"


def is_of_this_user(connection: socket.socket) -> bool:
    """Whether the other end of a Unix socket is a process of the same user."""
    fields = struct.Struct("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, fields.size)
    return bool(fields.unpack(data)[1] == os.geteuid())


class Hub:
    """The connections of one host's workers; on the loop that runs when it is made.

    Args:
        host: The host's name.
        address: Where to listen.
        tell: Called on the loop with what workers had to say since the last time.

    Attributes:
        host: The host's name.
        links: Workers that have said who they are, by number.
        connected: All that are connected.
    """

    def __init__(self, host: str, address: Address, tell: Callable[[list[Bundle]], None]) -> None:
        self.host = host
        self.links: dict[int, _Link] = {}
        self.connected: set[_Link] = set()
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._talking: dict[_Link, None] = {}
        self._lingering: dict[_Link, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address.socket)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._listen()
        _hubs.add(self)

    def close(self) -> None:
        """Listen no more; workers that are still there see their connections closed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for link in tuple(self.connected):
            link.close()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # it stays readable, and the loop would do nothing else
            logger.error("a worker's connection has to wait: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_SECONDS, self._listen)
            return
        if is_of_this_user(connection):
            self.connected.add(_Link(self, connection))
        else:
            connection.close()

    def deliver(self, number: int, message: bytes) -> None:
        """Send a message to a worker, if it is still there; from any thread."""
        link = self.links.get(number)
        if link is not None:
            link.write(wire.frame(message))

    def flush_soon(self, link: _Link) -> None:
        """Tell what a worker says, once for all that comes in one pass of the loop."""
        if not self._talking:
            self._loop.call_soon(self._flush)
        self._talking[link] = None

    def linger(self, link: _Link) -> None:
        """Tell in a moment of calls that have begun, if they still run then."""
        self._lingering[link] = None
        if self._timer is None:
            self._timer = self._loop.call_later(LINGER_SECONDS, self._tell_begun)

    def _tell_begun(self) -> None:
        self._timer = None
        lingering, self._lingering = self._lingering, {}
        for link in lingering:
            if link.tell_begun():
                self.flush_soon(link)

    def _flush(self) -> None:
        talking, self._talking = self._talking, {}
        bundles = [bundle for link in talking if (bundle := link.take())]
        for number, notes in bundles:
            if notes[-1][1] == wire.GONE:
                del self.links[number]
        if bundles:
            self._tell(bundles)

    def abandon(self) -> None:
        """Close these copies in a forked child, or workers would not see its parent's end."""
        for link in self.connected:
            link.abandon()
        _abandon(self._listener)


class _Link:
    """One worker's connection: read on the loop, written to from any thread."""

    def __init__(self, hub: Hub, connection: socket.socket) -> None:
        self._hub = hub
        self._socket = connection
        self._frames = wire.Frames()
        self._number: int | None = None
        self._begun: dict[int, None] = {}
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._notes: list[wire.Note] = []
        connection.setblocking(False)
        self._loop.add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for note in self._frames.feed(data):
            token, word = note[:2]
            if word == wire.BEGUN:
                self._begun[token] = None
                continue
            if word == wire.HELLO:
                self._number = token
                self._hub.links[token] = self
                here = pickle.loads(note[3]), self._hub.host
                note = (token, word, 0.0, pickle.dumps(here))
            self._begun.pop(token, None)
            self._notes.append(note)
        if not data:
            self.close()
            if self._number is not None:
                self.tell_begun()
                self._notes.append((0, wire.GONE, 0.0, b""))
        if self._notes:
            self._hub.flush_soon(self)
        if self._begun:
            self._hub.linger(self)

    def close(self) -> None:
        """Read and write no more."""
        self._hub.connected.discard(self)
        self._loop.remove_reader(self._socket)
        with self._lock:
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def abandon(self) -> None:
        """Close this copy in a forked child."""
        _abandon(self._socket)

    def tell_begun(self) -> bool:
        """Note calls that run since a while; returns whether there are any."""
        begun, self._begun = self._begun, {}
        self._notes += [(token, wire.BEGUN, 0.0, b"") for token in begun]
        return bool(begun)

    def take(self) -> Bundle | None:
        """Return the worker's number and the notes that the head has not got yet."""
        if self._number is None or not self._notes:
            return None
        notes, self._notes = self._notes, []
        return self._number, notes

    def write(self, message: bytes) -> None:
        """Send a message, what the worker does not take at once a little later."""
        with self._lock:
            if self._socket.fileno() < 0:
                return
            if not self._unsent:
                message = message[self._send(message) :]
                if message:
                    self._loop.call_soon_threadsafe(self._write_on)
            self._unsent += message

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it has gone, which reading tells as well
            return len(data)

    def _write_on(self) -> None:
        with self._lock:
            if self._socket.fileno() < 0:
                return
            del self._unsent[: self._send(self._unsent)]
            if self._unsent:
                self._loop.add_writer(self._socket, self._write_on)
            else:
                self._loop.remove_writer(self._socket)


def _abandon(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        os.close(connection.detach())


_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def _abandon_all() -> None:
    for hub in _hubs:
        hub.abandon()


os.register_at_fork(after_in_child=_abandon_all)
