"""The gateway's listener: accepts connections, within bounds on how many there are.

Descriptors are shared with the connections to model servers and with the pipes of executables, so
clients must never be able to use all of them.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["ConnectionLimits", "Listener"]

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""Longest time from the start of a connection until the head of its first request has arrived."""
KEY_SECONDS = 3.0
"""How long a client may take to show its key, if other connections wait. Clients that send many
requests at once open all connections first."""
BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""
ACCEPTS_PER_PASS = 16
"""Connections accepted in one pass of the loop."""
RETRY_SECONDS = 1.0
"""Pause before connections are accepted again after an error, such as too many open files."""


class ConnectionLimits(NamedTuple):
    """How many connections there may be.

    Attributes:
        total: All connections. Further ones wait in the kernel until one is closed.
        unknown: Connections whose client has shown no key (or, if none is required, has sent no
            request). Beyond it the oldest one is closed if it is older than `KEY_SECONDS`, and
            further ones wait in the kernel until then.
    """

    total: int
    unknown: int

    @classmethod
    def of_this_process(cls) -> ConnectionLimits:
        """Derive the limits from the number of files that this process may open.

        A connection may need a second one to a model server, so with a third of the descriptors
        for connections a third is left for everything else.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        total = max(files // 3, 8) if files != resource.RLIM_INFINITY else 65536
        return cls(total, min(total // 4, 256))


class Listener:
    """Accepts the connections of a server.

    Args:
        limits: How many connections there may be.
        head_seconds: Longest time until the head of a first request has arrived.
        key_seconds: Time for a client to show its key while others wait.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        head_seconds: float = HEAD_SECONDS,
        key_seconds: float = KEY_SECONDS,
    ) -> None:
        self._limits = limits
        self._key_seconds = key_seconds
        self._head_seconds = head_seconds
        self._make_protocol: Callable[[], asyncio.Protocol] | None = None
        self._sockets: list[socket.socket] = []
        self._connections: dict[asyncio.BaseProtocol, _Connection] = {}
        self._unknown: dict[_Connection, float] = {}
        """Connections without a key, the oldest first, with the time of their start."""
        self._connecting: set[asyncio.Task[None]] = set()
        self._warned = False
        self._retry: asyncio.TimerHandle | None = None
        """Resumes after an error."""
        self._expiry: asyncio.TimerHandle | None = None
        """Resumes when the oldest connection without a key may be closed."""
        self._paused = True

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses and ports that it listens on."""
        return [listening.getsockname()[:2] for listening in self._sockets]

    def start(
        self, make_protocol: Callable[[], asyncio.Protocol], sockets: Sequence[socket.socket]
    ) -> None:
        """Listen on sockets, which `stop` closes.

        Args:
            make_protocol: Makes the protocol of a connection.
            sockets: Bound sockets.

        Raises:
            OSError: A socket cannot listen. All of them are closed.
        """
        self._make_protocol = make_protocol
        self._sockets = list(sockets)
        try:
            for listening in sockets:
                listening.setblocking(False)
                listening.listen(BACKLOG)
        except OSError:
            self._close()
            raise
        self._resume()

    async def stop(self) -> None:
        """Accept no more connections. Existing ones stay. Idempotent."""
        self._close()
        await asyncio.gather(*self._connecting)

    def _close(self) -> None:
        self._pause()
        for listening in self._sockets:
            listening.close()
        self._sockets = []

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            for listening in self._sockets:
                asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _pause(self) -> None:
        self._paused = True
        for timer in (self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        self._retry = self._expiry = None
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)

    def _accept(self, listening: socket.socket) -> None:
        assert self._make_protocol is not None
        loop = asyncio.get_running_loop()
        for number in range(ACCEPTS_PER_PASS):
            # That a connection waits is certain only of the first one.
            if not self._has_room() and (number or not self._close_oldest_unknown()):
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("the HTTP server cannot accept a connection: %s", error)
                self._pause()
                self._retry = loop.call_later(RETRY_SECONDS, self._resume)
                return
            accepted.setblocking(False)
            connection = _Connection(self._make_protocol(), self)
            self._connections[connection.protocol] = connection
            self._unknown[connection] = loop.time()
            connecting = loop.create_task(self._connect(connection, accepted))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    def _has_room(self) -> bool:
        return len(self) < self._limits.total and len(self._unknown) < self._limits.unknown

    def _close_oldest_unknown(self) -> bool:
        """Close the oldest connection without a key, or pause until one may be closed."""
        if not self._unknown:
            self._warn_once()
            self._pause()
            return False
        loop = asyncio.get_running_loop()
        oldest, since = next(iter(self._unknown.items()))
        left = since + self._key_seconds - loop.time()
        if left > 0:
            self._pause()
            self._expiry = loop.call_later(left, self._resume)
            return False
        self.closed(oldest)
        oldest.abort()
        return True

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the HTTP server has %d connections, and new ones wait until one is closed; a "
                "higher limit of open files (ulimit -n) allows more",
                len(self),
            )

    async def _connect(self, connection: _Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # the client has disconnected
            accepted.close()
            self.closed(connection)

    def began(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that the head of a request has arrived on a connection.

        Args:
            protocol: The protocol of the connection.
        """
        if (connection := self._connections.get(protocol)) is not None:
            connection.stop_timer()

    def trust(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that the client of a connection may use the server.

        Args:
            protocol: The protocol of the connection.
        """
        if (connection := self._connections.get(protocol)) is not None:
            self._unknown.pop(connection, None)
            self._resume_if_room()

    @property
    def head_seconds(self) -> float:
        """Longest time until the head of a first request has arrived."""
        return self._head_seconds

    def closed(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.pop(connection.protocol, None)
        self._unknown.pop(connection, None)
        self._resume_if_room()

    def _resume_if_room(self) -> None:
        if self._paused and self._retry is None and self._has_room():
            self._resume()


class _Connection(asyncio.Protocol):
    """Passes the events of a connection to its protocol, and closes it if no request arrives."""

    def __init__(self, protocol: asyncio.Protocol, listener: Listener) -> None:
        self.protocol = protocol
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._aborted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._listener.head_seconds, self.abort)
        self.protocol.connection_made(transport)
        if self._aborted:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        self._listener.closed(self)
        self.protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """Close the connection without sending what is buffered."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()
