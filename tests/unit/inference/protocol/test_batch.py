"""The batch protocol: checks of requests, events, and the buffer of unsent ones."""

import asyncio
import json
from typing import Any

import pytest

from rhapsody.inference.protocol import batch
from rhapsody.inference.protocol.batch import (
    EventBuffer,
    delta_event,
    done_event,
    duplicate_id,
    error_event,
    ids_of,
    prompts_of,
    token_usage,
)
from rhapsody.inference.protocol.errors import RequestError


def test_prompts_are_returned_unchecked() -> None:
    prompts = [{"id": "a", "prompt": 7}, {"id": "b"}]
    assert prompts_of({"prompts": prompts}) == prompts


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompts"),
        ({"prompts": "x"}, "prompts"),
        ({"prompts": [], "more": 1}, "more"),
        ({"prompts": [{"id": "a"}, "x"]}, "prompts[1]"),
        ({"prompts": [{"id": 3}]}, "prompts[0]"),
    ],
)
def test_malformed_batch_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        prompts_of(body)
    assert raised.value.param == param
    assert raised.value.code == 400


def test_cancelled_ids_are_returned_once_in_order() -> None:
    assert ids_of({"ids": ["b", "a", "b"]}) == ["b", "a"]


@pytest.mark.parametrize("ids", [None, "a", [1], {"a": 1}])
def test_ids_must_be_a_list_of_str(ids: Any) -> None:
    with pytest.raises(RequestError, match="ids must be a list of str"):
        ids_of({"ids": ids})


def test_events_carry_the_id_of_their_prompt() -> None:
    usage = token_usage(2, 3)
    assert usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    events = [
        delta_event("p", 1, "text"),
        done_event("p", ["text"], ["stop"], usage),
        error_event("p", duplicate_id("p")),
    ]
    assert [event["id"] for event in events] == ["p"] * 3
    assert [event["type"] for event in events] == ["delta", "done", "error"]
    assert (events[2]["code"], events[2]["param"]) == (400, "id")


async def test_buffer_returns_all_events_as_lines() -> None:
    buffer = EventBuffer()
    buffer.put({"id": "a"})
    buffer.put({"id": "b\n\ud800"})
    assert len(buffer) == 2
    lines = (await buffer.take()).splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "a"}, {"id": "b\n\ud800"}]
    assert len(buffer) == 0


async def test_take_waits_for_the_first_event() -> None:
    buffer = EventBuffer()
    taking = asyncio.ensure_future(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()
    buffer.put({"id": "a"})
    assert await asyncio.wait_for(taking, 5) == b'{"id":"a"}\n'


async def test_wake_ends_a_pending_take_without_events() -> None:
    buffer = EventBuffer()
    taking = asyncio.ensure_future(buffer.take())
    await asyncio.sleep(0)
    buffer.wake()
    assert await asyncio.wait_for(taking, 5) == b""


async def test_full_buffer_has_room_after_it_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_BUFFER_BYTES", 20)
    buffer = EventBuffer()
    await buffer.wait_room()
    buffer.put({"text": "x" * 20})
    waiting = asyncio.ensure_future(buffer.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await buffer.take()
    await asyncio.wait_for(waiting, 5)
