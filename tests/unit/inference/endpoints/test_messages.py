"""Bodies of requests, and what is read from responses."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rhapsody.errors import PromptError
from rhapsody.inference.endpoints.messages import (
    Broken,
    NoEvents,
    chat_body,
    completion_body,
    completion_of,
    error_in,
    error_of,
    numbers_of,
    stream_events,
)
from rhapsody.inference.kinds import floats_of
from tests.support.openai_server import completion, sse

CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("logprobs", "sent"),
    [(True, {"logprobs": True}), (3, {"logprobs": True, "top_logprobs": 3})],
)
def test_logprobs_are_sent_as_the_chat_route_has_them(logprobs: Any, sent: dict[str, Any]) -> None:
    body = chat_body("m", CHAT, {"logprobs": logprobs})
    assert body == {"model": "m", "messages": CHAT, **sent}


def test_logprobs_of_a_completion_are_a_number() -> None:
    assert completion_body("m", "hi", {"logprobs": True})["logprobs"] == 1


def test_completion_has_text_reason_and_usage() -> None:
    read = completion_of(completion("HI"), 1)
    assert (read.texts, read.finish_reasons) == (["HI"], ["stop"])
    assert read.usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_several_choices_are_several_texts() -> None:
    body = {"choices": [{"text": "a", "finish_reason": "length"}, {"text": "b"}]}
    read = completion_of(body, 2)
    assert (read.texts, read.finish_reasons) == (["a", "b"], ["length", "stop"])


@pytest.mark.parametrize(
    "usage",
    [None, 7, {"prompt_tokens": "many", "completion_tokens": -1}, {"prompt_tokens": 10**400}],
)
def test_usage_that_is_no_count_is_zero(usage: Any) -> None:
    assert set(completion_of(completion("HI", usage=usage), 1).usage.values()) == {0}


@pytest.mark.parametrize("n", [1, 3])
def test_wrong_number_of_choices_is_refused(n: int) -> None:
    with pytest.raises(PromptError, match=f"the endpoint sent 2 responses with n={n}"):
        completion_of({"choices": [{"text": "a"}, {"text": "b"}]}, n)


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"choices": []}, {"choices": [7]}, {"choices": [{"message": {"content": 7}}]}],
)
def test_response_without_text_is_broken(body: Any) -> None:
    with pytest.raises(Broken):
        completion_of(body, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"error": {"message": "no", "type": "X", "param": "n"}}), "no"),
        (json.dumps({"error": "no"}), "no"),
        (json.dumps({"detail": [{"loc": ["n"]}]}), '[{"loc": ["n"]}]'),
        ("<html>\nno</html>", "<html> no</html>"),
        ("", "HTTP status 400"),
        ("[" * 100_000, "[" * 300),
    ],
)
def test_error_has_the_server_s_message(text: str, message: str) -> None:
    error = error_of(400, text)
    assert str(error) == message
    assert error.code == 400


async def _lines(data: bytes) -> AsyncIterator[bytes]:
    for line in data.splitlines(keepends=True):
        yield line


async def test_events_end_with_done() -> None:
    data = b": comment\n\n" + sse({"a": 1}, "[DONE]", {"b": 2})
    assert [event async for event in stream_events(_lines(data))] == [{"a": 1}]


@pytest.mark.parametrize(
    ("error", "code"),
    [("no", 500), ({"code": 429}, 429), ({"code": "400"}, 400), ({"code": 7}, 500)],
)
def test_error_with_the_status_200_has_its_code(error: Any, code: int) -> None:
    assert error_in({"error": error}).code == code


async def test_text_instead_of_events_is_kept() -> None:
    with pytest.raises(NoEvents) as caught:
        _ = [e async for e in stream_events(_lines(b": comment\n<html>\n</html>"))]
    assert caught.value.text == b"<html>\n</html>"


@pytest.mark.parametrize("event", ["{", "[1]", '{"choices": 5}', "[" * 100_000])
async def test_event_that_is_no_object_is_broken(event: str) -> None:
    with pytest.raises(Broken):
        _ = [e async for e in stream_events(_lines(sse(event)))]


@pytest.mark.parametrize(
    ("kind", "entry", "numbers", "labels"),
    [
        ("embed", {"embedding": [0.5, 1]}, [0.5, 1], ()),
        ("embed", {"embedding": "AACAPw=="}, [1], ()),
        ("score", {"score": 0.5}, [0.5], ()),
        ("classify", {"probs": [0.25, 0.75], "label": "good"}, [0.25, 0.75], ["LABEL_0", "good"]),
        ("classify", {"probs": [1], "labels": ["only"], "label": "only"}, [1], ["only"]),
    ],
)
def test_numbers_are_read(kind: str, entry: Any, numbers: Any, labels: Any) -> None:
    completion = numbers_of(kind, {"data": [entry], "usage": {"prompt_tokens": 3}})
    assert floats_of(completion.data).tolist() == numbers
    assert completion.labels == labels
    assert completion.usage["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("embed", {"data": []}),
        ("embed", {"data": [{"embedding": "!"}]}),
        ("embed", {"data": [{"embedding": ["x"]}]}),
        ("embed", {"data": [{"embedding": []}]}),
        ("embed", {"data": [{"embedding": [10**400]}]}),
        ("embed", {"data": [{"embedding": [0.5, float("nan")]}]}),
        ("embed", {"data": [{"embedding": "AACAfw=="}]}),
        ("score", {"data": [{"score": None}]}),
        ("score", {"data": [{"score": float("-inf")}]}),
        ("classify", {"data": [{"probs": [1], "labels": [["a"]]}]}),
        ("classify", {"data": [{"probs": [1], "label": {"a": 1}}]}),
        ("classify", {"data": [{"label": "a"}]}),
        ("classify", []),
    ],
)
def test_broken_numbers_are_refused(kind: str, body: Any) -> None:
    with pytest.raises(Broken, match=f"no {kind} result"):
        numbers_of(kind, body)
