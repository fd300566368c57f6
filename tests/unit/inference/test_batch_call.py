"""Prompts put into requests, and lines read as events."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from rhapsody.api.errors import PromptError
from rhapsody.inference import batch_call
from rhapsody.inference.batch_call import events, posts_of
from rhapsody.inference.prompts import PromptRequest


class Content:
    """A body that arrives in chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def iter_any(self) -> Any:
        for chunk in self._chunks:
            yield chunk


async def read(*chunks: bytes) -> list[dict[str, Any]]:
    return [event async for event in events(Content(*chunks))]  # type: ignore[arg-type]


async def test_a_batch_is_one_request_in_order() -> None:
    requests = [PromptRequest(text) for text in ("a", "b", "c")]
    [(body, group)] = await posts_of(requests)
    assert group == requests
    assert [prompt["prompt"] for prompt in json.loads(body)["prompts"]] == ["a", "b", "c"]


async def test_a_large_batch_is_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_call, "LARGEST_POST", 600)
    requests = [PromptRequest("x" * 400) for _ in range(3)]
    posts = await posts_of(requests)
    assert [group for _, group in posts] == [requests[:1], requests[1:2], requests[2:]]


async def test_a_prompt_larger_than_a_request_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_call, "LARGEST_POST", 10)
    requests = [PromptRequest("x" * 400), PromptRequest("y")]
    assert [len(group) for _, group in await posts_of(requests)] == [1, 1]


async def test_a_prompt_that_is_no_json_fails_alone() -> None:
    good = PromptRequest("a")
    bad = PromptRequest([{"role": "user", "content": {"a", "set"}}])
    [(_, group)] = await posts_of([good, bad])
    assert group == [good]
    with pytest.raises(PromptError, match="cannot be sent as JSON") as refused:
        await bad.completion()
    assert refused.value.code == 400


async def test_what_nobody_waits_for_is_not_sent() -> None:
    request = PromptRequest("a")
    request.abandon()
    assert await posts_of([request]) == []


async def test_the_loop_runs_while_much_is_encoded() -> None:
    requests = [PromptRequest("x" * batch_call.BYTES_PER_TURN) for _ in range(8)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await posts_of(requests)
    counting.cancel()
    await asyncio.wait([counting])
    assert turns >= 6


async def test_lines_are_events_however_they_are_cut() -> None:
    lines = [{"id": "p1"}, {"id": "p2", "text": "\u00e9\n"}]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert await read(data) == lines
    assert await read(*(data[at : at + 1] for at in range(len(data)))) == lines


async def test_an_unfinished_line_is_no_event() -> None:
    assert await read(b'{"id": "p1"}\n{"id": ') == [{"id": "p1"}]


async def test_a_line_that_is_no_json_is_a_lost_connection() -> None:
    with pytest.raises(aiohttp.ClientError):
        await read(b"oh no\n")
