"""A prompt: its form as a request, and its outcome."""

import asyncio

import pytest

from rhapsody.errors import PromptError
from rhapsody.inference.prompts import Completion, PromptRequest, as_messages, order_of
from tests.support.images import chat_about, png, url_of

DONE = Completion(["text"], ["stop"], {"prompt_tokens": 1, "completion_tokens": 1})
CHAT = [{"role": "user", "content": "hi"}]


def test_text_stays_a_prompt() -> None:
    assert as_messages("hi", None) == {"prompt": "hi", "messages": None}


def test_system_prompt_turns_text_into_chat() -> None:
    assert as_messages("hi", "Be short.") == {
        "prompt": None,
        "messages": [{"role": "system", "content": "Be short."}, *CHAT],
    }


def test_system_prompt_does_not_change_the_callers_chat() -> None:
    put = as_messages(CHAT, "Be short.")
    assert put["messages"] == [{"role": "system", "content": "Be short."}, *CHAT]
    assert len(CHAT) == 1


def test_several_texts_are_a_list() -> None:
    assert DONE.response == "text"
    assert DONE.finish_reason == "stop"
    several = Completion(["a", "b"], ["stop", "length"], {})
    assert several.response == ["a", "b"]
    assert several.finish_reason == ["stop", "length"]


async def test_ids_are_unique() -> None:
    requests = [PromptRequest("hi") for _ in range(100)]
    assert len({request.id for request in requests}) == 100
    for request in requests:
        request.close()


async def test_first_outcome_is_kept() -> None:
    request = PromptRequest("hi")
    request.complete(DONE)
    request.fail(ValueError("too late"))
    assert await request.completion() is DONE


async def test_closed_prompt_ignores_outcomes() -> None:
    request = PromptRequest("hi")
    request.close()
    request.complete(DONE)
    assert request.done
    with pytest.raises(asyncio.CancelledError):
        await request.completion()


async def test_close_marks_an_error_as_retrieved() -> None:
    request = PromptRequest("hi")
    request.fail(ValueError("nobody looks"))
    request.close()  # asyncio would log the error, and the test session would fail


async def test_text_is_passed_on_in_order_without_empty_pieces() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    assert request.body["stream"]
    for text in ("te", "", "xt"):
        request.handle_event({"type": "delta", "index": 0, "text": text})
    request.complete(DONE)
    assert pieces == ["te", "xt"]
    assert await request.completion() is DONE


async def test_error_after_text_is_the_outcome() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    request.handle_event({"type": "delta", "index": 0, "text": "te"})
    request.handle_event(
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


async def test_closed_prompt_passes_no_text_on() -> None:
    pieces: list[str] = []
    request = PromptRequest("hi", on_text=pieces.append)
    request.close()
    request.add_piece("te")
    assert pieces == []


async def test_stream_can_be_retried_until_its_first_text() -> None:
    plain, stream = PromptRequest("hi"), PromptRequest("hi", on_text=len)
    for request in (plain, stream):
        request.add_piece("")
        assert request.can_retry
        request.add_piece("te")
    assert plain.can_retry
    assert not stream.can_retry
    plain.close()
    stream.close()


def test_priority_counts_as_a_minute_of_waiting() -> None:
    now = order_of(0)
    assert now - 60_000 <= order_of(1) < now - 50_000
    assert order_of(-1) >= now + 60_000


async def test_chats_about_one_image_have_the_same_beginning() -> None:
    image, other = url_of(png(64, 64) + bytes(5000)), url_of(png(32, 64) + bytes(5000))
    requests = [PromptRequest(chat_about(url, text="See")) for url in (image, image, other)]
    keys = [request.prefix_keys() for request in requests]
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 4
    for request in requests:
        request.close()


async def test_malformed_contents_have_a_beginning() -> None:
    parts = [{"type": ["text"]}, {"image_url": 3}, "text", 4, None]
    request = PromptRequest([{"role": "user", "content": parts}, {"role": "user"}])
    assert request.prefix_keys() == ()
    request.close()
