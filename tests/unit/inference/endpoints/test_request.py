"""Requests to endpoints: time limits, and the lines of streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from rhapsody.inference.endpoints import request as module
from rhapsody.inference.endpoints.messages import Broken
from rhapsody.inference.endpoints.request import EndpointFailed, Request, read_lines
from tests.support.openai_server import OpenAIServer


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def lines_of(
    server: OpenAIServer, session: aiohttp.ClientSession, seconds: float
) -> list[bytes]:
    url = f"{server.url}/completions"
    async with Request(session, None, url, b"{}", seconds, stream=True) as response:
        return [line async for line in read_lines(response.content, seconds)]


def repeat(server: OpenAIServer, data: bytes) -> None:
    """Have a server send some data again and again, until the client disconnects."""

    async def drip(request: web.Request, body: object) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(data)
                await asyncio.sleep(0.01)
        return response

    server.answer = drip


async def test_lines_are_whole(server: OpenAIServer, session: aiohttp.ClientSession) -> None:
    async def answer(request: web.Request, body: object) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in (b"data: a", b"b\n\nda", b"ta: c\n: d"):
            await response.write(part)
            await asyncio.sleep(0.01)
        return response

    server.answer = answer
    assert await lines_of(server, session, 30) == [b"data: ab", b"", b"data: c", b": d"]


async def test_comments_are_no_events(server: OpenAIServer, session: aiohttp.ClientSession) -> None:
    repeat(server, b": \n")
    with pytest.raises(EndpointFailed, match=r"no event for 0\.3 s"):
        await lines_of(server, session, 0.3)


@pytest.mark.parametrize("name", ["MAX_LINE_BYTES", "MAX_RESPONSE_BYTES"])
async def test_size_is_bounded(
    server: OpenAIServer,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(module, name, 1000)
    repeat(server, b"data: " if name == "MAX_LINE_BYTES" else b"data: \n")
    with pytest.raises(Broken, match="of more than 1000 bytes"):
        await lines_of(server, session, 30)


async def test_response_that_does_not_end_fails_in_time(
    server: OpenAIServer, session: aiohttp.ClientSession
) -> None:
    repeat(server, b" ")
    with pytest.raises(EndpointFailed, match=r"no response within 0\.3 s"):
        async with Request(
            session, None, f"{server.url}/completions", b"{}", 0.3, stream=False
        ) as response:
            await response.read()
