"""The batch route of the embedded server: events, errors of single prompts, cancellation."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.support.embedded_servers import Server, Servers, batch, metric, until_metric

GREEDY = {"temperature": 0, "max_tokens": 40}


@pytest.fixture
def slow(servers: Servers) -> Server:
    return servers.start("--token-delay-ms", "20", "--max-num-seqs", "2")


def endless(name: str, **more: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 1000, "ignore_eos": True}
    return {"id": name, "prompt": "Once", "sampling": sampling, **more}


async def test_batch_ends_every_prompt_with_done(client: aiohttp.ClientSession) -> None:
    prompts = [
        {"id": f"p{i}", "prompt": f"What is simulation {i}?", "sampling": GREEDY}
        for i in range(300)
    ]
    lines = await batch(client, *prompts)
    assert {line["id"] for line in lines} == {prompt["id"] for prompt in prompts}
    assert {line["type"] for line in lines} == {"done"}
    for line in lines:
        assert line["id"][1:] in line["texts"][0]
        assert set(line) == {"id", "type", "texts", "finish_reasons", "usage"}
        assert line["finish_reasons"][0] in ("stop", "length")
        usage = line["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_text_prompt_equals_chat_of_one_user_message(client: aiohttp.ClientSession) -> None:
    prompts = ["What is the capital of France?", "hé 🎉", " spaces ", "<|user|>", "a\n\nb"]
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        [by_prompt] = await batch(
            client, {"id": "1", "prompt": prompt, "sampling": {"temperature": 0}}
        )
        [by_messages] = await batch(
            client, {"id": "2", "messages": messages, "sampling": {"temperature": 0}}
        )
        body = {"model": "tiny", "messages": messages, "temperature": 0}
        async with client.post("/v1/chat/completions", json=body) as response:
            chat = await response.json()
        assert by_prompt["texts"] == [chat["choices"][0]["message"]["content"]]
        assert by_prompt["usage"] == chat["usage"]
        assert by_prompt["finish_reasons"] == [chat["choices"][0]["finish_reason"]]
        assert {**by_prompt, "id": ""} == {**by_messages, "id": ""}


async def test_deltas_are_sent_only_for_streamed_prompts(client: aiohttp.ClientSession) -> None:
    sampling = {"seed": 5, "n": 2, "max_tokens": 12}
    lines = await batch(
        client,
        {"id": "stream", "prompt": "Tell me.", "sampling": sampling, "stream": True},
        {"id": "plain", "prompt": "Tell me.", "sampling": sampling, "stream": False},
    )
    done = {line["id"]: line for line in lines if line["type"] == "done"}
    deltas = [line for line in lines if line["type"] == "delta"]
    assert {line["id"] for line in deltas} == {"stream"}
    texts = ["", ""]
    for line in deltas:
        texts[line["index"]] += line["text"]
    assert texts == done["stream"]["texts"] == done["plain"]["texts"]


async def test_faulty_schema_fails_alone(client: aiohttp.ClientSession) -> None:
    schema = {"type": "array", "minItems": "x"}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    [faulty, other] = await batch(
        client,
        {"id": "faulty", "prompt": "Why?", "sampling": {"response_format": wanted}},
        {"id": "other", "prompt": "Why?", "sampling": GREEDY},
    )
    assert (faulty["type"], faulty["code"]) == ("error", 400)
    assert other["type"] == "done"


async def test_short_prompt_ends_before_long_neighbour(slow: Server) -> None:
    async with slow.client() as client:
        short = {"id": "short", "prompt": "Why?", "sampling": {"max_tokens": 2}}
        body = {"prompts": [endless("long"), short]}
        async with client.post("/rhapsody/batch", json=body) as response:
            first = json.loads(await response.content.readline())
    assert (first["id"], first["type"]) == ("short", "done")


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"prompt": "x", "sampling": {"temperature": -1}}, "temperature"),
        ({"prompt": "x", "sampling": {"colour": "red"}}, "colour"),
        ({"prompt": "x", "sampling": 3}, "sampling"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "word " * 300}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
async def test_invalid_prompt_fails_alone(
    client: aiohttp.ClientSession, bad: dict[str, Any], param: str
) -> None:
    good = {"id": "good", "prompt": "Why?", "messages": None, "sampling": None, "stream": None}
    lines = await batch(client, {"id": "bad", **bad}, good)
    by_id = {line["id"]: line for line in lines}
    assert by_id["good"]["type"] == "done"
    error = by_id["bad"]
    assert error.pop("message")
    assert error == {
        "id": "bad",
        "type": "error",
        "param": param,
        "code": 400,
        "kind": "BadRequestError",
    }


async def test_duplicate_id_is_refused(client: aiohttp.ClientSession) -> None:
    twice = {"id": "same", "prompt": "Why?", "sampling": GREEDY}
    lines = await batch(client, twice, twice)
    assert sorted(line["type"] for line in lines) == ["done", "error"]
    assert [line["type"] for line in await batch(client, twice)] == ["done"]


async def test_empty_batch_has_no_events(client: aiohttp.ClientSession) -> None:
    assert await batch(client) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompts": "x"},
        {"prompts": ["x"]},
        {"prompts": [{"prompt": "x"}]},
        {"prompts": [{"id": 3, "prompt": "x"}]},
        {"prompts": [], "more": 1},
    ],
)
async def test_malformed_batch_is_a_bad_request(client: aiohttp.ClientSession, body: Any) -> None:
    async with client.post("/rhapsody/batch", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "BadRequestError"


async def test_cancel_ends_running_and_waiting_prompts(slow: Server) -> None:
    async with slow.client() as client:
        prompts = [endless(name) for name in ("a", "b", "c")]
        request = asyncio.create_task(batch(client, *prompts))
        await until_metric(client, "requests_running", 2)
        assert await metric(client, "requests_waiting") == 1
        ids = ["a", "c", "c", "unknown"]
        async with client.post("/rhapsody/cancel", json={"ids": ids}) as response:
            assert await response.json() == {"cancelled": 2}
        async with client.post("/rhapsody/cancel", json={"ids": ["b", "a"]}) as response:
            assert await response.json() == {"cancelled": 1}
        lines = await asyncio.wait_for(request, 10)
    assert [line["id"] for line in lines] == ["a", "c", "b"]
    assert {(line["type"], line["code"], line["kind"]) for line in lines} == {
        ("error", 499, "Cancelled")
    }


@pytest.mark.parametrize("body", [{}, {"ids": "a"}, {"ids": [1]}])
async def test_cancel_requires_a_list_of_ids(client: aiohttp.ClientSession, body: Any) -> None:
    async with client.post("/rhapsody/cancel", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "ids"


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_cancels_prompts(slow: Server, stream: bool) -> None:
    async with slow.client() as client:
        prompts = [endless(name, stream=stream) for name in ("a", "b", "c")]
        request = asyncio.create_task(batch(client, *prompts))
        await until_metric(client, "requests_running", 2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until_metric(client, "requests_running", 0)
        assert await metric(client, "requests_waiting") == 0


async def test_metrics_count_tokens(client: aiohttp.ClientSession) -> None:
    before = await metric(client, "generation_tokens_total")
    prompts_before = await metric(client, "prompt_tokens_total")
    [line] = await batch(client, {"id": "1", "prompt": "Why?", "sampling": GREEDY})
    after = await metric(client, "generation_tokens_total")
    assert after - before == line["usage"]["completion_tokens"]
    prompts_after = await metric(client, "prompt_tokens_total")
    assert prompts_after - prompts_before == line["usage"]["prompt_tokens"]
