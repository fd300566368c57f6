"""Server mode over plain HTTP: every route, and errors of one format."""

import asyncio
import gzip
import json
import socket
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rhapsody.inference.protocol.process import MAX_BODY_BYTES
from tests.support.inference import MODEL

Client = aiohttp.ClientSession
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


async def error_of(response: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    """Check the status and the common format of an error response, and return the error."""
    assert response.status == status
    assert response.content_type == "application/json"
    body = await response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"]
    return error


async def test_health_describes_the_service(http: Client, url: str) -> None:
    async with http.get("/health") as response:
        assert response.status == 200
        body = await response.json()
    assert body["status"] == "healthy"
    assert body["model"] == MODEL
    assert body["endpoint"] == url
    assert [replica["state"] for replica in body["replicas"]] == ["READY"]
    assert body["batch_config"]["max_batch_size"] == 1024
    assert body["batch_config"]["max_batch_wait_ms"] == 500


async def test_generate_returns_results_in_order(http: Client, backend: Any) -> None:
    prompts = ["What is heat?", "What is light?"]
    greedy = {"temperature": 0, "max_tokens": 8}
    async with http.post(
        "/generate", json={"prompts": prompts, "timeout": 60, **greedy}
    ) as response:
        assert response.status == 200
        body = await response.json()
    assert body["results"] == await backend.generate(prompts, **greedy)
    assert body["errors"] == [None, None]
    assert body["status"] == "success"
    assert body["num_prompts"] == 2
    assert body["usage"]["completion_tokens"] == 16


async def test_generate_reports_each_failed_prompt(http: Client) -> None:
    prompts = ["hi", "word " * 20_000]
    async with http.post("/generate", json={"prompts": prompts, "max_tokens": 4}) as response:
        assert response.status == 200
        body = await response.json()
    assert body["status"] == "partial"
    assert isinstance(body["results"][0], str)
    assert body["results"][1] is None
    assert body["errors"][0] is None
    assert body["errors"][1]["code"] == 400


async def test_generate_reports_each_timed_out_prompt(http: Client) -> None:
    body = {"prompts": ["hi"], "timeout": 0.001, "max_tokens": 1500, "ignore_eos": True}
    async with http.post("/generate", json=body) as response:
        generated = await response.json()
    assert generated["results"] == [None]
    assert generated["errors"][0]["code"] == 504
    assert "0.001 s" in generated["errors"][0]["message"]


async def test_chat_completions(http: Client) -> None:
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        body = await response.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"]


async def test_chat_completions_stream_as_events(http: Client) -> None:
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["Transfer-Encoding"] == "chunked"
        lines = [line async for line in response.content if line.strip()]
    assert len(lines) > 3
    assert lines[-1] == b"data: [DONE]\n"


async def test_completions(http: Client) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8}
    async with http.post("/v1/completions", json=body) as response:
        assert (await response.json())["choices"][0]["text"]


async def test_models_are_listed_and_described(http: Client) -> None:
    async with http.get("/v1/models") as response:
        [model] = (await response.json())["data"]
    assert model["id"] == MODEL
    async with http.get(f"/v1/models/{MODEL}") as response:
        assert await response.json() == model


async def test_metrics_include_replicas(http: Client, backend: Any) -> None:
    await backend.generate("hi", max_tokens=4)
    async with http.get("/metrics") as response:
        assert response.content_type == "text/plain"
        families = list(text_string_to_metric_families(await response.text()))
    samples = {
        (sample.name, sample.labels.get("replica") or sample.labels.get("outcome")): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["rhapsody_prompts_total", "done"] >= 1
    assert samples["rhapsody_embedded_generation_tokens_total", "0"] >= 4


async def test_response_to_head_has_no_body(http: Client) -> None:
    async with http.head("/health") as response:
        assert response.status == 200
        assert await response.read() == b""
    async with http.head("/v1/models") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_compressed_body_is_decoded(http: Client) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    data = gzip.compress(json.dumps(CHAT).encode())
    async with http.post("/v1/chat/completions", data=data, headers=headers) as response:
        assert response.status == 200


async def test_replica_errors_are_passed_on(http: Client) -> None:
    async with http.post("/v1/chat/completions", json={**CHAT, "temperature": -1}) as response:
        error = await error_of(response, 400)
    assert error["param"] == "temperature"


async def raw(url: str, request: bytes) -> bytes:
    """Send bytes that no client library would send, and return all that is received."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("dots", [b"..", b"%2e%2e", b"%2E.", b"x/../.."])
async def test_dots_do_not_reach_private_routes(url: str, dots: bytes) -> None:
    body = b'{"ids": []}'
    received = await raw(
        url,
        b"POST /v1/%b/rhapsody/cancel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (dots, len(body), body),
    )
    assert received.startswith(b"HTTP/1.1 404")


async def test_quoted_path_is_forwarded_unchanged(url: str) -> None:
    path = b"/v1/models/an%2Forg%20name"
    received = await raw(url, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    assert b"an/org name` does not exist" in received


async def test_pipelined_requests_keep_their_order(url: str) -> None:
    one = b"GET /v1/models/first HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /v1/models/second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    received = await raw(url, one + two)
    assert received.count(b"HTTP/1.1 404") == 2
    assert received.index(b"`first`") < received.index(b"`second`")


async def test_unknown_path_lists_known_ones(http: Client) -> None:
    async with http.get("/v2/models") as response:
        error = await error_of(response, 404)
    assert "/v1/models" in error["message"]


async def test_unknown_v1_route_is_not_found(http: Client) -> None:
    async with http.get("/v1/nothing") as response:
        await error_of(response, 404)


async def test_wrong_method_names_the_right_one(http: Client) -> None:
    async with http.get("/generate") as response:
        error = await error_of(response, 405)
        assert response.headers["Allow"] == "POST"
    assert "POST" in error["message"]


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"", b'"text"'])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_body_must_be_json(http: Client, path: str, data: bytes) -> None:
    async with http.post(path, data=data) as response:
        await error_of(response, 400)


async def test_unknown_field_is_named(http: Client) -> None:
    async with http.post("/generate", json={"prompts": ["hi"], "max_token": 4}) as response:
        error = await error_of(response, 400)
    assert error["param"] == "max_token"


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_large_body_is_refused(http: Client, path: str) -> None:
    async def body() -> Any:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    async with http.post(path, data=body()) as response:
        error = await error_of(response, 413)
    assert str(MAX_BODY_BYTES) in error["message"]


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "20", *arguments, stdout=-1
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_curl_chat(url: str) -> None:
    output = await curl(f"{url}/v1/chat/completions", "--json", json.dumps(CHAT))
    assert json.loads(output)["choices"][0]["message"]["content"]


async def test_curl_stream(url: str) -> None:
    body = json.dumps({**CHAT, "stream": True})
    output = await curl("--no-buffer", f"{url}/v1/chat/completions", "--json", body)
    assert output.rstrip().endswith("data: [DONE]")


async def test_curl_large_batch(url: str) -> None:
    # Above 1 MB curl sends `Expect: 100-continue` first.
    body = json.dumps({"prompts": ["x" * 4000 for _ in range(300)], "max_tokens": 2})
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--max-time", "20", f"{url}/generate", "--json", "@-"),
        stdin=-1,
        stdout=-1,
    )
    output, _ = await process.communicate(body.encode())
    assert json.loads(output)["num_prompts"] == 300


def test_endpoint_accepts_connections(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    socket.create_connection((host, int(port)), 5).close()


async def test_disconnecting_clients_log_no_errors(
    http: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave_early(lines: int) -> None:
        body = {**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        async with http.post("/v1/chat/completions", json=body) as response:
            for _ in range(lines):
                await response.content.readline()
            response.close()

    await asyncio.gather(*(leave_early(lines) for lines in range(60)))
    async with http.get("/health") as response:
        assert response.status == 200
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
