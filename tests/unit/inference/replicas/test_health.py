"""Health checks of a model server."""

import asyncio
import contextlib
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from rhapsody.inference.replicas.client_session import open_session
from rhapsody.inference.replicas.health import Health, check_health
from tests.support.replicas import ScriptedServer, short_directory


async def health_of(path: Path, seconds: float = 10) -> Health:
    async with open_session(f"unix:{path}", "key") as session:
        return await check_health(session, seconds)


@pytest.mark.parametrize(("status", "health"), [(200, Health.GOOD), (503, Health.BAD)])
async def test_status_is_the_health(status: int, health: Health) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(status=status)

    server = ScriptedServer()
    server._health = respond  # type: ignore[method-assign]
    with short_directory() as folder:
        await server.launch([], {}, folder / "log", folder / "socket")
        assert await health_of(folder / "socket") is health
        await server.stop()


async def test_silent_server_is_unknown() -> None:
    with short_directory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen()
        assert await health_of(folder / "socket", 0.05) is Health.UNKNOWN


async def test_full_queue_of_the_socket_is_unknown() -> None:
    with short_directory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen(0)
        with contextlib.ExitStack() as others:
            for _ in range(4):
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect_ex(str(folder / "socket"))
            assert await health_of(folder / "socket", 0.05) is Health.UNKNOWN


async def test_missing_server_is_bad() -> None:
    with short_directory() as folder:
        assert await health_of(folder / "socket") is Health.BAD


async def test_closed_session_is_an_error() -> None:
    session = aiohttp.ClientSession()
    await session.close()
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(check_health(session, 1), 5)
