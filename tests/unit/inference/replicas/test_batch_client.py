"""The client of the batch route: prompts encoded as requests, lines decoded as events."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from rhapsody.errors import PromptError
from rhapsody.inference.pacing import Pace
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replicas import batch_client
from rhapsody.inference.replicas.batch_client import read_events, split_batch


class Content:
    """A response body that arrives in chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def iter_any(self) -> Any:
        for chunk in self._chunks:
            yield chunk


async def read(*chunks: bytes) -> list[dict[str, Any]]:
    return [event async for event in read_events(Content(*chunks), Pace())]  # type: ignore[arg-type]


async def test_batch_is_one_request_in_order() -> None:
    requests = [PromptRequest(text) for text in ("a", "b", "c")]
    [(body, prompts)] = await split_batch(requests, Pace())
    assert prompts == requests
    assert [prompt["prompt"] for prompt in json.loads(body)["prompts"]] == ["a", "b", "c"]


async def test_large_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "MAX_REQUEST_BYTES", 600)
    requests = [PromptRequest("x" * 400) for _ in range(3)]
    parts = await split_batch(requests, Pace())
    assert [prompts for _, prompts in parts] == [requests[:1], requests[1:2], requests[2:]]


async def test_oversized_prompt_is_sent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "MAX_REQUEST_BYTES", 10)
    requests = [PromptRequest("x" * 400), PromptRequest("y")]
    assert [len(prompts) for _, prompts in await split_batch(requests, Pace())] == [1, 1]


async def test_unserializable_prompt_fails_alone() -> None:
    good = PromptRequest("a")
    bad = PromptRequest([{"role": "user", "content": {"a", "set"}}])
    [(_, prompts)] = await split_batch([good, bad], Pace())
    assert prompts == [good]
    with pytest.raises(PromptError, match="cannot be sent as JSON") as refused:
        await bad.completion()
    assert refused.value.code == 400


async def test_closed_prompt_is_left_out() -> None:
    request = PromptRequest("a")
    request.close()
    assert await split_batch([request], Pace()) == []


async def test_loop_runs_while_prompts_are_encoded() -> None:
    requests = [PromptRequest("x" * batch_client.BYTES_PER_UNIT * 128) for _ in range(8)]
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            await asyncio.sleep(0)
            passes += 1

    counting = asyncio.create_task(count())
    await split_batch(requests, Pace())
    counting.cancel()
    await asyncio.wait([counting])
    assert passes >= 6


async def test_events_are_read_from_any_chunks() -> None:
    lines = [{"id": "p1"}, {"id": "p2", "text": "\u00e9\n"}]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert await read(data) == lines
    assert await read(*(data[at : at + 1] for at in range(len(data)))) == lines


async def test_unfinished_line_is_ignored() -> None:
    assert await read(b'{"id": "p1"}\n{"id": ') == [{"id": "p1"}]


async def test_invalid_line_is_a_client_error() -> None:
    with pytest.raises(aiohttp.ClientError):
        await read(b"oh no\n")
