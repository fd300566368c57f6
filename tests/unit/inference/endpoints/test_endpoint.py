"""One endpoint: requests, refusals and pauses."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from rhapsody.errors import PromptError
from rhapsody.inference.endpoints.endpoint import (
    FAILURES_IN_A_ROW,
    SHORTEST_RETRY_AFTER_SECONDS,
    Endpoint,
    EndpointBusy,
)
from rhapsody.inference.endpoints.request import EndpointFailed
from rhapsody.inference.kinds import PoolingInput
from rhapsody.inference.prompts import Completion, PromptRequest
from tests.support.openai_server import MODEL, OpenAIServer, completion, delta, sse


@pytest_asyncio.fixture
async def endpoint(server: OpenAIServer) -> AsyncIterator[Endpoint]:
    made = Endpoint(
        0, server.url, "a-key", max_concurrency=4, request_timeout=0.5, chat=True, proxy=None
    )
    yield made
    await made.close()


async def complete(endpoint: Endpoint, prompt: Any = "hi", on_text: Any = None) -> Completion:
    request = PromptRequest(prompt, None, None, on_text)
    try:
        return await endpoint.complete(MODEL, prompt, None, {"max_tokens": 5}, request)
    finally:
        request.close()


def respond(status: int, text: str = "", **headers: str) -> Any:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


async def test_text_is_sent_as_a_chat_with_the_key(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    assert (await complete(endpoint)).texts == ["HI"]
    chat = [{"role": "user", "content": "hi"}]
    assert server.bodies == [{"model": MODEL, "messages": chat, "max_tokens": 5}]
    assert server.headers[0]["Authorization"] == "Bearer a-key"


async def test_pieces_of_a_stream_are_passed_on(endpoint: Endpoint) -> None:
    pieces: list[str] = []
    completion = await complete(endpoint, on_text=pieces.append)
    assert pieces == ["H", "I"]
    assert completion.texts == ["HI"]
    assert completion.usage["total_tokens"] == 5


async def test_refused_prompt_has_the_server_s_message(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    server.answer = respond(400, '{"error": {"message": "too long", "type": "BadRequest"}}')
    with pytest.raises(PromptError, match="too long") as caught:
        await complete(endpoint)
    assert (caught.value.code, caught.value.kind) == (400, "BadRequest")
    assert endpoint.room == 4


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_endpoint_takes_nothing_until_it_says(
    server: OpenAIServer, endpoint: Endpoint, status: int
) -> None:
    server.answer = respond(status, **{"Retry-After": "60"})
    with pytest.raises(EndpointBusy):
        await complete(endpoint)
    assert endpoint.room == 0
    assert endpoint.state == "PAUSED"
    assert 55 < endpoint.not_before - time.monotonic() <= 60


async def test_date_of_retry_after_is_understood(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.answer = respond(429, **{"Retry-After": formatdate(time.time() + 60, usegmt=True)})
    with pytest.raises(EndpointBusy):
        await complete(endpoint)
    assert 50 < endpoint.not_before - time.monotonic() <= 60


@pytest.mark.parametrize("value", ["0", "-5", formatdate(1e9, usegmt=True)])
async def test_retry_after_no_time_is_a_pause(
    server: OpenAIServer, endpoint: Endpoint, value: str
) -> None:
    server.answer = respond(429, **{"Retry-After": value})
    before = time.monotonic()
    with pytest.raises(EndpointBusy):
        await complete(endpoint)
    assert endpoint.not_before - before >= SHORTEST_RETRY_AFTER_SECONDS


@pytest.mark.parametrize("on_text", [None, lambda text: None])
@pytest.mark.parametrize("text", ["<html>hello</html>", "[" * 100_000])
async def test_page_instead_of_json_is_explained(
    server: OpenAIServer, endpoint: Endpoint, text: str, on_text: Any
) -> None:
    server.answer = respond(200, text)
    with pytest.raises(EndpointFailed, match="It usually ends in /v1"):
        await complete(endpoint, on_text=on_text)


@pytest.mark.parametrize("on_text", [None, lambda text: None])
@pytest.mark.parametrize(
    ("code", "raised"),
    [(400, PromptError), (429, EndpointBusy), (401, EndpointFailed), (500, EndpointFailed)],
)
async def test_error_with_the_status_200_is_that_error(
    server: OpenAIServer, endpoint: Endpoint, code: int, raised: type[Exception], on_text: Any
) -> None:
    server.answer = respond(200, json.dumps({"error": {"message": "no", "code": code}}))
    with pytest.raises(raised, match="no"):
        await complete(endpoint, on_text=on_text)


async def test_error_in_a_stream_is_that_of_the_server(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(body=sse({"error": {"message": "out of memory"}}))

    server.answer = fail
    with pytest.raises(EndpointFailed, match="out of memory"):
        await complete(endpoint, on_text=lambda text: None)


async def test_response_of_a_server_that_does_not_stream_is_one_piece(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    pieces: list[str] = []
    server.answer = respond(200, json.dumps(completion("HI"), indent=1))
    assert (await complete(endpoint, on_text=pieces.append)).texts == ["HI"]
    assert pieces == ["HI"]


async def test_any_status_of_success_is_one(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.answer = respond(201, json.dumps(completion("HI")))
    assert (await complete(endpoint)).texts == ["HI"]


async def test_redirect_is_not_followed(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.answer = respond(302, Location="http://elsewhere.example/")
    with pytest.raises(EndpointFailed, match="redirects to 'http://elsewhere"):
        await complete(endpoint)


async def test_cut_stream_fails(server: OpenAIServer, endpoint: Endpoint) -> None:
    async def cut(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(body=sse(delta("H")), content_type="text/event-stream")

    server.answer = cut
    with pytest.raises(EndpointFailed, match="ended early"):
        await complete(endpoint, on_text=lambda text: None)


async def test_silent_endpoint_fails_in_time(server: OpenAIServer, endpoint: Endpoint) -> None:
    never = asyncio.Event()

    async def hang(request: web.Request, body: dict[str, Any]) -> web.Response:
        await never.wait()
        return web.Response()

    server.answer = hang
    with pytest.raises(EndpointFailed, match=r"sent no response within 0\.5 s"):
        await complete(endpoint)
    never.set()


async def test_endpoint_that_fails_in_a_row_gets_one_request_after_a_pause(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    server.answer = respond(500, "broken")
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(EndpointFailed, match=r"it failed \(HTTP 500\): broken"):
            await complete(endpoint)
    assert (endpoint.state, endpoint.room) == ("FAILED", 0)
    endpoint.not_before = 0.0  # the pause is over
    assert endpoint.room == 1
    server.answer = server.upper
    await complete(endpoint)
    assert (endpoint.state, endpoint.room, endpoint.problem) == ("READY", 4, None)


async def test_prompt_that_is_no_json_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(PromptError, match="cannot be sent as JSON"):
        await complete(endpoint, [{"role": "user", "content": object()}])


async def test_models_are_listed(server: OpenAIServer, endpoint: Endpoint) -> None:
    assert await endpoint.models() == [MODEL]
    server.models = None
    assert await endpoint.models() is None


async def test_refused_key_is_said(server: OpenAIServer, endpoint: Endpoint) -> None:
    server.models_status = 401
    with pytest.raises(EndpointFailed, match=r"refuses the key \(HTTP 401\)"):
        await endpoint.models()


async def test_endpoint_that_cannot_be_reached_fails() -> None:
    unreachable = Endpoint(
        0,
        "http://127.0.0.1:9/v1",
        None,
        max_concurrency=1,
        request_timeout=1,
        chat=True,
        proxy=None,
    )
    try:
        with pytest.raises(EndpointFailed, match="it cannot be reached"):
            await complete(unreachable)
    finally:
        await unreachable.close()


async def test_server_without_the_route_of_a_kind_is_named(
    server: OpenAIServer, endpoint: Endpoint
) -> None:
    with pytest.raises(PromptError, match="/classify does not exist, or its model does not take"):
        await complete(endpoint, PoolingInput("classify", "hi"))
    assert endpoint.state == "READY"
