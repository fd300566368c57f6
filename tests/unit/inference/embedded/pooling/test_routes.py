"""The HTTP routes and the batch route for embeddings, scores and classes."""

import asyncio
import base64
from typing import Any

import aiohttp
import pytest

from rhapsody.inference.embedded.pooling.vectors import floats_of
from tests.support.embedded_servers import Servers, batch, metric, until_metric


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def test_embeddings_as_floats_and_as_base64(client: aiohttp.ClientSession) -> None:
    status, plain = await post(client, "/v1/embeddings", model="tiny", input=["heat", "tea"])
    _, encoded = await post(client, "/v1/embeddings", input="tea", encoding_format="base64")
    assert status == 200
    assert [one["index"] for one in plain["data"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}
    decoded = floats_of(base64.b64decode(encoded["data"][0]["embedding"]))
    assert decoded == plain["data"][1]["embedding"]


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "heat", "text_2": ["heat", "tea"]},
        {"queries": ["heat", "heat"], "documents": ["heat", "tea"]},
    ],
)
async def test_scores(client: aiohttp.ClientSession, body: Any) -> None:
    for path in ("/score", "/v1/score"):
        _, scored = await post(client, path, **body)
        same, other = [one["score"] for one in scored["data"]]
        assert same == pytest.approx(1)
        assert other < 0.5


async def test_classes(client: aiohttp.ClientSession) -> None:
    _, found = await post(client, "/classify", input=["a story", "computing"])
    assert [one["label"] for one in found["data"]] == ["story", "computing"]
    assert found["data"][0]["labels"] == ["computing", "physics", "story"]
    assert sum(found["data"][0]["probs"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "model"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 400, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, 400, "prompt"),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "x"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "colour": 1}, 400, "colour"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400, "text_1"),
        ("/classify", {}, 400, "input"),
    ],
)
async def test_invalid_request_is_refused(
    client: aiohttp.ClientSession, path: str, body: Any, status: int, param: str
) -> None:
    got, answer = await post(client, path, **body)
    assert (got, answer["error"]["param"]) == (status, param)


async def test_batch_has_numbers_and_an_error_for_each_bad_input(
    client: aiohttp.ClientSession,
) -> None:
    events = await batch(
        client,
        {"id": "e", "kind": "embed", "prompt": "heat"},
        {"id": "s", "kind": "score", "prompt": "heat", "document": "heat"},
        {"id": "c", "kind": "classify", "prompt": "a story"},
        {"id": "empty", "kind": "embed", "prompt": ""},
        {"id": "long", "kind": "embed", "prompt": "word " * 300},
        {"id": "text", "prompt": "heat", "sampling": {"max_tokens": 2}},
    )
    found = {event["id"]: event for event in events}
    assert len(floats_of(base64.b64decode(found["e"]["data"]))) == 256
    assert floats_of(base64.b64decode(found["s"]["data"])) == pytest.approx([1])
    assert found["c"]["labels"] == ["computing", "physics", "story"]
    assert (found["empty"]["type"], found["long"]["type"]) == ("error", "error")
    assert found["text"]["texts"]


async def test_disconnect_cancels_inputs_that_wait(servers: Servers) -> None:
    server = servers.start("--token-delay-ms", "60000", "--max-num-seqs", "1", "--labels", "a, b")
    async with server.client() as client:
        body = {"input": ["heat", "tea", "rain"]}
        asking = asyncio.create_task(post(client, "/v1/embeddings", **body))
        await until_metric(client, "requests_waiting", 2)
        asking.cancel()
        await until_metric(client, "requests_waiting", 0)
        assert await metric(client, "prompt_tokens_total") == 3
