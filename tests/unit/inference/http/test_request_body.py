"""Bodies of requests, from a real client to a real server."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from rhapsody.inference.http import request_body
from rhapsody.inference.http.errors import error_response
from rhapsody.inference.http.request_body import read_body

TEXT = b'{"prompts": ["hi"]}'

Client = TestClient[web.Request, web.Application]


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@contextlib.asynccontextmanager
async def echo_client(seconds: float = 20) -> AsyncIterator[Client]:
    async def echo(request: web.Request) -> web.Response:
        try:
            return web.Response(body=await read_body(request, seconds))
        except Exception as error:
            return error_response(request, error)

    app = web.Application()
    app.router.add_post("/", echo)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
        yield client


async def post(client: Client, data: bytes, coding: str) -> tuple[int, bytes]:
    async with client.post("/", data=data, headers={"Content-Encoding": coding}) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT)),
        ("GZIP", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:5]) + gzip.compress(TEXT[5:])),
        ("gzip", b"".join(gzip.compress(TEXT[i : i + 1]) for i in range(len(TEXT)))),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
    ],
)
async def test_body_is_decompressed(coding: str, data: bytes) -> None:
    async with echo_client() as client:
        assert await post(client, data, coding) == (200, TEXT)


@pytest.mark.parametrize(
    ("coding", "data"),
    [("gzip", TEXT), ("gzip", gzip.compress(TEXT)[:-12]), ("deflate", TEXT)],
)
async def test_body_that_cannot_be_decompressed_is_a_bad_request(coding: str, data: bytes) -> None:
    async with echo_client() as client:
        status, body = await post(client, data, coding)
        assert status == 400
        assert f"the body is not valid {coding}".encode() in body
        assert (await post(client, TEXT, "identity"))[0] == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "snappy", "gzip, gzip"])
async def test_unknown_content_coding_is_an_unsupported_media_type(coding: str) -> None:
    async with (
        echo_client() as client,
        client.post("/", data=TEXT, headers={"Content-Encoding": coding}) as response,
    ):
        assert response.status == 415
        assert response.headers["Accept-Encoding"] == "gzip, deflate"
        message = (await response.json())["error"]["message"]
        assert f"'{coding}' is not supported; compress the body with gzip or deflate" in message


async def test_decompressed_body_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "MAX_BODY_BYTES", 1000)
    async with echo_client() as client:
        assert (await post(client, gzip.compress(b"x" * 1000), "gzip"))[0] == 200
        assert (await post(client, gzip.compress(b"x" * 1001), "gzip"))[0] == 413


async def test_large_body_is_decompressed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "LARGE_BODY_BYTES", 1)
    async with echo_client() as client:
        assert await post(client, gzip.compress(TEXT), "gzip") == (200, TEXT)


async def raw_response(client: Client, head: bytes) -> bytes:
    """Send the head of a request without a body, and return the status line of the response."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: test\r\n" + head)
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    await writer.wait_closed()
    return line


async def test_body_that_does_not_arrive_is_a_timeout() -> None:
    async with echo_client(seconds=0.05) as client:
        line = await raw_response(client, b"Content-Length: 5\r\n\r\n")
    assert b" 408 " in line


async def test_malformed_chunks_are_a_bad_request() -> None:
    async with echo_client() as client:
        line = await raw_response(client, b"Transfer-Encoding: chunked\r\n\r\nnope\r\n\r\n")
    assert b" 400 " in line
