"""HTTP helpers of the embedded server: errors as JSON, the key of every path."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from rhapsody.inference.embedded.http import (
    dumps,
    errors_as_json,
    json_response,
    read_object,
    require_key,
)
from rhapsody.inference.protocol.errors import RequestError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, key: str | None = None) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]
    app = web.Application(middlewares=[errors_as_json, require_key(key)])
    app.router.add_post("/", handler)
    async with TestClient(TestServer(app)) as client:
        yield client


async def echo(request: web.Request) -> web.StreamResponse:
    return json_response(await read_object(request))


async def error_of(response: aiohttp.ClientResponse) -> dict[str, object]:
    error: dict[str, object] = (await response.json())["error"]
    assert error["code"] == response.status
    return error


def test_json_is_compact_ascii() -> None:
    assert dumps({"a": "é\ud800"}) == b'{"a":"\\u00e9\\ud800"}'


async def test_object_is_read_and_returned() -> None:
    async with serving(echo) as client:
        response = await client.post("/", json={"a": 1})
        assert await response.json() == {"a": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"\xff", "is not UTF-8"), (b"{", "is not JSON"), (b"[]", "must be a JSON object, got list")],
)
async def test_body_must_be_an_object(body: bytes, message: str) -> None:
    async with serving(echo) as client:
        error = await error_of(await client.post("/", data=body))
    assert (error["type"], message in str(error["message"])) == ("BadRequestError", True)


async def test_error_of_a_handler_keeps_its_fields() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise RequestError("no", "field", 404)

    async with serving(refuse) as client:
        error = await error_of(await client.post("/", json={}))
    assert error == {"message": "no", "type": "NotFoundError", "param": "field", "code": 404}


async def test_exception_of_a_handler_is_logged_and_becomes_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: web.Request) -> web.StreamResponse:
        raise LookupError("intended")

    async with serving(fail) as client:
        error = await error_of(await client.post("/", json={}))
    assert error["type"] == "InternalServerError"
    assert "POST / failed" in caplog.text


async def test_error_of_the_router_is_json_with_its_headers() -> None:
    async with serving(echo) as client:
        response = await client.get("/")
        assert (await error_of(response))["type"] == "MethodNotAllowedError"
        assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"X-Rhapsody-Key": "wrong"}, 401), ({"X-Rhapsody-Key": "right"}, 200)],
    ids=["no key", "wrong key", "right key"],
)
async def test_key_is_required_if_set(headers: dict[str, str], status: int) -> None:
    async with serving(echo, key="right") as client:
        assert (await client.post("/", json={}, headers=headers)).status == status


async def test_key_protects_unknown_paths_too() -> None:
    async with serving(echo, key="right") as client:
        assert (await client.get("/unknown")).status == 401
