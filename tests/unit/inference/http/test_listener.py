"""Bounds on connections, with real sockets and a protocol that echoes lines."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator

import pytest

from rhapsody.inference.http.listener import ConnectionLimits, Listener
from rhapsody.inference.ports import bind_sockets
from tests.support.waiting import until

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo(asyncio.Protocol):
    """Echoes what arrives. "hello" counts as a request, "key" as one with the key."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data in (b"hello", b"key"):
            self.listener.began(self)
        if data == b"key":
            self.listener.trust(self)
        self.transport.write(data)


class Server:
    """A listener and clients of it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.clients: list[Client] = []

    async def connect(self, text: bytes = b"") -> Client:
        client = await asyncio.open_connection(*self.listener.addresses[0])
        self.clients.append(client)
        if text:
            client[1].write(text)
            assert await asyncio.wait_for(client[0].read(9), 20) == text
        return client


@contextlib.asynccontextmanager
async def listening(
    total: int, unknown: int, head_seconds: float = 60, key_seconds: float = 0
) -> AsyncIterator[Server]:
    listener = Listener(ConnectionLimits(total, unknown), head_seconds, key_seconds)
    listener.start(lambda: Echo(listener), bind_sockets("127.0.0.1", 0))
    server = Server(listener)
    try:
        yield server
    finally:
        await listener.stop()
        for _, writer in server.clients:
            writer.close()
        await until(lambda: len(listener) == 0)


async def is_closed(client: Client) -> bool:
    try:
        return await asyncio.wait_for(client[0].read(1), 20) == b""
    except ConnectionResetError:
        return True


def test_limits_leave_descriptors_for_other_uses() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        assert ConnectionLimits.of_this_process() == (200, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connection_without_request_is_closed() -> None:
    async with listening(8, 8, head_seconds=0.05) as server:
        assert await is_closed(await server.connect())
        assert await is_closed(await server.connect(b"half"))


async def test_connection_with_request_outlives_the_head_timeout() -> None:
    async with listening(8, 8, head_seconds=0.05) as server:
        known = await server.connect(b"hello")
        assert await is_closed(await server.connect())
        known[1].write(b"more")
        assert await asyncio.wait_for(known[0].read(9), 20) == b"more"


async def test_oldest_connection_without_key_is_closed_beyond_the_limit() -> None:
    async with listening(8, 2) as server:
        known = await server.connect(b"key")
        first, second, third = [await server.connect(b"hello") for _ in range(3)]
        assert await is_closed(first)
        for reader, writer in (known, second, third):
            writer.write(b"more")
            assert await asyncio.wait_for(reader.read(9), 20) == b"more"


async def test_many_clients_at_once_are_all_served() -> None:
    async with listening(500, 4, key_seconds=60) as server:
        # All connections first, as asyncio clients do.
        clients = await asyncio.gather(*(server.connect() for _ in range(40)))
        for _, writer in clients:
            writer.write(b"key")
        answers = [await asyncio.wait_for(reader.read(9), 20) for reader, _ in clients]
    assert answers == [b"key"] * 40


async def test_clients_without_key_hold_up_others_for_a_moment_only() -> None:
    async with listening(8, 2, key_seconds=0.2) as server:
        silent = [await server.connect() for _ in range(2)]
        await asyncio.wait_for(server.connect(b"key"), 20)
        assert await is_closed(silent[0])
        assert len(server.listener) == 2


async def test_connections_with_key_take_the_places_of_those_without() -> None:
    async with listening(2, 2) as server:
        first = await server.connect(b"hello")
        await server.connect(b"key")
        await server.connect(b"key")
        assert await is_closed(first)


async def test_connection_beyond_the_limit_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(1, 1) as server:
        first = await server.connect(b"key")
        waiting = await server.connect()
        waiting[1].write(b"key")
        await until(lambda: "new ones wait until one is closed" in caplog.text)
        first[1].close()
        assert await asyncio.wait_for(waiting[0].read(9), 20) == b"key"


async def test_stopped_listener_keeps_its_connections() -> None:
    async with listening(8, 8) as server:
        reader, writer = await server.connect(b"key")
        await server.listener.stop()
        writer.write(b"more")
        assert await asyncio.wait_for(reader.read(9), 20) == b"more"
