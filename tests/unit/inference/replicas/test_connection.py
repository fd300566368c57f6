"""The connection to a model server: what it sends, and its end."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from rhapsody.inference.replicas.connection import ServerConnection
from tests.support.replicas import ScriptedServer, short_directory, started_replica
from tests.support.waiting import LIMIT_S, until

RELEASED = web.AppKey("released", asyncio.Event)
DOCUMENTS = {"/v1/models": {"data": [{"id": "tiny"}]}, "/openapi.json": {"paths": {}}}


async def document(request: web.Request) -> web.Response:
    return web.json_response(DOCUMENTS[request.path])


async def refuse(request: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "no such layer"}}, status=400)


async def hang(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await request.app[RELEASED].wait()
    return response


@pytest.fixture
async def connection() -> AsyncIterator[ServerConnection]:
    app = web.Application()
    app[RELEASED] = asyncio.Event()
    for path in DOCUMENTS:
        app.router.add_get(path, document)
    app.router.add_post("/command", refuse)
    app.router.add_get("/hang", hang)
    runner = web.AppRunner(app)
    await runner.setup()
    connection = ServerConnection("secret")
    with short_directory() as folder:
        await web.UnixSite(runner, str(folder / "s")).start()
        connection.open(f"unix:{folder / 's'}")
        yield connection
        await connection.close()
        app[RELEASED].set()
        await runner.cleanup()


async def test_documents_of_the_server_are_read(connection: ServerConnection) -> None:
    assert await connection.models() == [{"id": "tiny"}]
    assert await connection.openapi() == {"paths": {}}
    assert await connection.metrics() is None


async def test_refusal_of_a_command_has_its_reason(connection: ServerConnection) -> None:
    assert await connection.exchange("/command", {}) == (400, "no such layer")


async def test_closed_connection_sends_nothing(connection: ServerConnection) -> None:
    await connection.close()
    assert await connection.models() is None
    with pytest.raises(aiohttp.ClientConnectionError, match="the model server is stopped"):
        await connection.exchange("/command", {})


async def test_close_wakes_the_reader_of_a_response(connection: ServerConnection) -> None:
    async def read() -> None:
        async with connection.request("GET", "/hang", {}) as response:
            await response.read()

    reading = asyncio.create_task(read())
    await until(lambda: connection._responses)
    await connection.close()
    with pytest.raises(aiohttp.ClientConnectionError, match="it was stopped"):
        await asyncio.wait_for(reading, LIMIT_S)


async def test_simultaneous_cancels_share_a_request() -> None:
    server = ScriptedServer()
    async with started_replica(server) as replica:
        for name in ("a", "b", "c"):
            replica.connection.cancel(name)
        await asyncio.wait_for(server.cancel_received.wait(), LIMIT_S)
    assert server.cancelled == [["a", "b", "c"]]
