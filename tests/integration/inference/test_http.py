"""Server mode over plain HTTP: every route, every error in one shape."""

import asyncio
import gzip
import json
import socket
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rhapsody.inference.gateway import is_open_to_others
from rhapsody.inference.http_errors import MAX_BODY_BYTES
from tests.support.inference import MODEL

Client = aiohttp.ClientSession
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


async def shaped(answer: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    """Check the one shape of all errors, and return what is in it."""
    assert answer.status == status
    assert answer.content_type == "application/json"
    body = await answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"]
    return error


# -- the routes -------------------------------------------------------------------------------


async def test_health_says_what_is_served_and_how(http: Client, url: str) -> None:
    async with http.get("/health") as answer:
        assert answer.status == 200
        body = await answer.json()
    assert body["status"] == "healthy"
    assert body["model"] == MODEL
    assert body["endpoint"] == url
    assert [replica["state"] for replica in body["replicas"]] == ["READY"]
    assert body["batch_config"]["max_batch_size"] == 1024
    assert body["batch_config"]["max_batch_wait_ms"] == 500


async def test_generate_answers_in_order(http: Client, backend: Any) -> None:
    prompts = ["What is heat?", "What is light?"]
    greedy = {"temperature": 0, "max_tokens": 8}
    async with http.post("/generate", json={"prompts": prompts, "timeout": 60, **greedy}) as answer:
        assert answer.status == 200
        body = await answer.json()
    assert body["results"] == await backend.generate(prompts, **greedy)
    assert body["errors"] == [None, None]
    assert body["status"] == "success"
    assert body["num_prompts"] == 2
    assert body["usage"]["completion_tokens"] == 16


async def test_generate_marks_each_prompt_that_failed(http: Client) -> None:
    prompts = ["hi", "word " * 20_000]
    async with http.post("/generate", json={"prompts": prompts, "max_tokens": 4}) as answer:
        assert answer.status == 200
        body = await answer.json()
    assert body["status"] == "partial"
    assert isinstance(body["results"][0], str)
    assert body["results"][1] is None
    assert body["errors"][0] is None
    assert body["errors"][1]["code"] == 400


async def test_generate_marks_each_prompt_that_was_too_slow(http: Client) -> None:
    body = {"prompts": ["hi"], "timeout": 0.001, "max_tokens": 1500, "ignore_eos": True}
    async with http.post("/generate", json=body) as answer:
        answered = await answer.json()
    assert answered["results"] == [None]
    assert answered["errors"][0]["code"] == 504
    assert "0.001 s" in answered["errors"][0]["message"]


async def test_chat_completions(http: Client) -> None:
    async with http.post("/v1/chat/completions", json=CHAT) as answer:
        body = await answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"]


async def test_chat_completions_stream_as_events(http: Client) -> None:
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Transfer-Encoding"] == "chunked"
        lines = [line async for line in answer.content if line.strip()]
    assert len(lines) > 3
    assert lines[-1] == b"data: [DONE]\n"


async def test_completions(http: Client) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8}
    async with http.post("/v1/completions", json=body) as answer:
        assert (await answer.json())["choices"][0]["text"]


async def test_models_are_listed_and_described(http: Client) -> None:
    async with http.get("/v1/models") as answer:
        [model] = (await answer.json())["data"]
    assert model["id"] == MODEL
    async with http.get(f"/v1/models/{MODEL}") as answer:
        assert await answer.json() == model


async def test_metrics_are_ours_and_the_replicas(http: Client, backend: Any) -> None:
    await backend.generate("hi", max_tokens=4)
    async with http.get("/metrics") as answer:
        assert answer.content_type == "text/plain"
        families = list(text_string_to_metric_families(await answer.text()))
    samples = {
        (sample.name, sample.labels.get("replica") or sample.labels.get("outcome")): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["rhapsody_prompts_total", "done"] >= 1
    assert samples["rhapsody_embedded_generation_tokens_total", "0"] >= 4


async def test_a_head_request_has_no_body(http: Client) -> None:
    async with http.head("/health") as answer:
        assert answer.status == 200
        assert await answer.read() == b""
    async with http.head("/v1/models") as answer:
        assert answer.status == 200
        assert await answer.read() == b""


# -- what is passed on ------------------------------------------------------------------------


async def test_a_packed_body_is_understood(http: Client) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    data = gzip.compress(json.dumps(CHAT).encode())
    async with http.post("/v1/chat/completions", data=data, headers=headers) as answer:
        assert answer.status == 200


async def test_the_replicas_own_errors_come_through(http: Client) -> None:
    async with http.post("/v1/chat/completions", json={**CHAT, "temperature": -1}) as answer:
        error = await shaped(answer, 400)
    assert error["param"] == "temperature"


async def raw(url: str, request: bytes) -> bytes:
    """Send bytes that no client library would, and read what comes until the end."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("dots", [b"..", b"%2e%2e", b"%2E.", b"x/../.."])
async def test_dots_do_not_lead_to_the_replicas_own_routes(url: str, dots: bytes) -> None:
    body = b'{"ids": []}'
    answer = await raw(
        url,
        b"POST /v1/%b/rhapsody/cancel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (dots, len(body), body),
    )
    assert answer.startswith(b"HTTP/1.1 404")


async def test_a_quoted_path_arrives_as_it_was_sent(url: str) -> None:
    path = b"/v1/models/an%2Forg%20name"
    answer = await raw(url, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    assert b"an/org name` does not exist" in answer


async def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    one = b"GET /v1/models/first HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /v1/models/second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = await raw(url, one + two)
    assert answers.count(b"HTTP/1.1 404") == 2
    assert answers.index(b"`first`") < answers.index(b"`second`")


# -- errors -----------------------------------------------------------------------------------


async def test_an_unknown_path_is_told_the_known_ones(http: Client) -> None:
    async with http.get("/v2/models") as answer:
        error = await shaped(answer, 404)
    assert "/v1/models" in error["message"]


async def test_an_unknown_route_under_v1_is_not_found(http: Client) -> None:
    async with http.get("/v1/nothing") as answer:
        await shaped(answer, 404)


async def test_a_wrong_method_is_told_the_right_one(http: Client) -> None:
    async with http.get("/generate") as answer:
        error = await shaped(answer, 405)
        assert answer.headers["Allow"] == "POST"
    assert "POST" in error["message"]


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"", b'"text"'])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_what_is_no_json_is_a_bad_request(http: Client, path: str, data: bytes) -> None:
    async with http.post(path, data=data) as answer:
        await shaped(answer, 400)


async def test_an_unknown_field_is_named(http: Client) -> None:
    async with http.post("/generate", json={"prompts": ["hi"], "max_token": 4}) as answer:
        error = await shaped(answer, 400)
    assert error["param"] == "max_token"


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_a_body_that_is_too_large_is_refused(http: Client, path: str) -> None:
    async def body() -> Any:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    async with http.post(path, data=body()) as answer:
        error = await shaped(answer, 413)
    assert str(MAX_BODY_BYTES) in error["message"]


# -- curl -------------------------------------------------------------------------------------


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "20", *arguments, stdout=-1
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_curl_asks_for_a_chat(url: str) -> None:
    output = await curl(f"{url}/v1/chat/completions", "--json", json.dumps(CHAT))
    assert json.loads(output)["choices"][0]["message"]["content"]


async def test_curl_reads_a_stream(url: str) -> None:
    body = json.dumps({**CHAT, "stream": True})
    output = await curl("--no-buffer", f"{url}/v1/chat/completions", "--json", body)
    assert output.rstrip().endswith("data: [DONE]")


async def test_curl_sends_a_large_batch(url: str) -> None:
    # Above a megabyte curl asks first, by `Expect: 100-continue`.
    body = json.dumps({"prompts": ["x" * 4000 for _ in range(300)], "max_tokens": 2})
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--max-time", "20", f"{url}/generate", "--json", "@-"),
        stdin=-1,
        stdout=-1,
    )
    output, _ = await process.communicate(body.encode())
    assert json.loads(output)["num_prompts"] == 300


# -- who may ask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "addresses", "open_"),
    [
        (None, ["127.0.0.1"], False),
        (None, ["127.0.0.1", "::1"], False),
        (None, ["10.0.0.4"], True),
        (None, ["127.0.0.1", "0.0.0.0"], True),
        (None, ["::"], True),
        ("secret", ["0.0.0.0"], False),
    ],
)
def test_listening_beyond_loopback_without_a_key_is_open_to_others(
    key: str | None, addresses: list[str], open_: bool
) -> None:
    assert is_open_to_others(key, addresses) is open_


def test_the_endpoint_is_an_address_one_can_connect_to(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    socket.create_connection((host, int(port)), 5).close()


async def test_clients_that_leave_in_the_middle_are_no_errors_in_the_log(
    http: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave_early(lines: int) -> None:
        body = {**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        async with http.post("/v1/chat/completions", json=body) as answer:
            for _ in range(lines):
                await answer.content.readline()
            answer.close()

    await asyncio.gather(*(leave_early(lines) for lines in range(60)))
    async with http.get("/health") as answer:
        assert answer.status == 200
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
