"""One prompt: how it is put, and its one outcome."""

import asyncio

import pytest

from rhapsody.api.errors import PromptError
from rhapsody.inference.prompts import Completion, PromptRequest, as_messages

DONE = Completion(["text"], ["stop"], {"prompt_tokens": 1, "completion_tokens": 1})
CHAT = [{"role": "user", "content": "hi"}]


def test_a_text_goes_as_it_is() -> None:
    assert as_messages("hi", None) == {"prompt": "hi", "messages": None}


def test_a_system_prompt_makes_a_chat_of_a_text() -> None:
    assert as_messages("hi", "Be short.") == {
        "prompt": None,
        "messages": [{"role": "system", "content": "Be short."}, *CHAT],
    }


def test_a_system_prompt_goes_before_a_chat_and_leaves_the_callers_list_alone() -> None:
    put = as_messages(CHAT, "Be short.")
    assert put["messages"] == [{"role": "system", "content": "Be short."}, *CHAT]
    assert len(CHAT) == 1


def test_one_text_is_a_response_and_several_are_a_list() -> None:
    assert DONE.response == "text"
    assert DONE.finish_reason == "stop"
    several = Completion(["a", "b"], ["stop", "length"], {})
    assert several.response == ["a", "b"]
    assert several.finish_reason == ["stop", "length"]


async def test_ids_are_all_different() -> None:
    requests = [PromptRequest("hi") for _ in range(100)]
    assert len({request.id for request in requests}) == 100
    for request in requests:
        request.abandon()


async def test_the_first_outcome_is_the_only_one() -> None:
    request = PromptRequest("hi")
    request.finish(DONE)
    request.fail(ValueError("too late"))
    assert await request.completion() is DONE


async def test_an_abandoned_prompt_takes_no_outcome() -> None:
    request = PromptRequest("hi")
    request.abandon()
    request.finish(DONE)
    assert request.done
    with pytest.raises(asyncio.CancelledError):
        await request.completion()


async def test_a_failure_that_nobody_awaits_is_not_complained_about() -> None:
    request = PromptRequest("hi")
    request.fail(ValueError("nobody looks"))
    request.abandon()  # the test session fails on what asyncio logs


async def test_text_is_handed_out_in_order_without_empty_pieces() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    assert request.body["stream"]
    for text in ("te", "", "xt"):
        request.take_event({"type": "delta", "index": 0, "text": text})
    request.finish(DONE)
    assert pieces == ["te", "xt"]
    assert await request.completion() is DONE


async def test_an_error_after_some_text_is_the_outcome() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    request.take_event({"type": "delta", "index": 0, "text": "te"})
    request.take_event(
        {"type": "error", "message": "no", "code": 400, "kind": "BadRequestError", "param": "n"}
    )
    assert pieces == ["te"]
    with pytest.raises(PromptError) as refused:
        await request.completion()
    assert (refused.value.code, refused.value.kind, refused.value.param) == (
        400,
        "BadRequestError",
        "n",
    )


async def test_an_abandoned_prompt_hands_out_nothing_more() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    request.abandon()
    request.add_piece("te")
    assert pieces == []


async def test_a_plain_prompt_can_start_over_a_stream_only_before_its_first_text() -> None:
    plain, stream = PromptRequest("hi"), PromptRequest("hi", on_text=len)
    for request in (plain, stream):
        request.add_piece("")
        assert request.can_retry
        request.add_piece("te")
    assert plain.can_retry
    assert not stream.can_retry
    plain.abandon()
    stream.abandon()
