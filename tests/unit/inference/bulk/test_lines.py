"""Lines of OpenAI's batch format."""

import base64
import json
from typing import Any

import pytest

from rhapsody.errors import PartialFailureError, PromptError
from rhapsody.inference.bulk.lines import (
    LineError,
    error_line,
    read_request,
    response_line,
    unknown_model,
)
from rhapsody.inference.kinds import FloatArray, floats_of

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def request(url: str = CHAT, **body: Any) -> Any:
    return read_request("a", {"custom_id": "a", "method": "POST", "url": url, "body": body}, "m")


def answer(made: Any, **fields: Any) -> Any:
    line = json.loads(response_line(made, {"usage": USAGE, **fields}, "m"))
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("a", None, 200)
    body = line["response"]["body"]
    assert (body["model"], body["usage"]) == ("m", USAGE)
    return body


def test_chat_becomes_a_task() -> None:
    made = request(
        model="m", messages=MESSAGES, max_completion_tokens=5, user="me", stream=False, n=None
    )
    assert made.task == {"prompt": MESSAGES, "max_tokens": 5}


def test_number_of_logprobs_is_that_of_the_likeliest_tokens() -> None:
    made = request(messages=MESSAGES, logprobs=True, top_logprobs=3)
    assert made.task == {"prompt": MESSAGES, "logprobs": 3}


def test_chat_response_has_choices() -> None:
    made = request(messages=MESSAGES, n=2)
    fields = {"response": ["a", "b"], "finish_reason": ["stop", "length"]}
    choices = answer(made, **fields)["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["a", "b"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]


def test_message_and_logprobs_are_kept() -> None:
    made = request(messages=MESSAGES, tools=[{}])
    message: Any = {"role": "assistant", "content": None, "tool_calls": [{}]}
    fields: dict[str, Any] = {"response": "", "finish_reason": "tool_calls", "message": message}
    assert answer(made, **fields)["choices"][0]["message"] == message
    fields = {"response": "x", "finish_reason": "stop", "response_logprobs": [{"token": "x"}]}
    assert answer(made, **fields)["choices"][0]["logprobs"] == {"content": [{"token": "x"}]}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_have_their_encoding(encoding: str) -> None:
    made = request("/v1/embeddings", input="x", encoding_format=encoding)
    assert made.task == {"prompt": ["x"], "kind": "embed"}
    rows = FloatArray(floats_of(b"\x00\x00\x80\x3f" * 4), (2, 2))
    data = answer(made, response=rows)["data"]
    assert [one["index"] for one in data] == [0, 1]
    found = data[1]["embedding"]
    if encoding == "base64":
        found = floats_of(base64.b64decode(found)).tolist()
    assert found == [1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"url": "/v1/files"}, "'url' must be"),
        ({"url": CHAT, "method": "GET", "body": {}}, "with the method POST"),
        ({"url": CHAT}, "'body' must be an object"),
        ({"url": CHAT, "body": {"messages": "hi"}}, "'messages' must be a non-empty list"),
        ({"url": CHAT, "body": {"messages": MESSAGES, "stream": True}}, "'stream' must be false"),
        ({"url": CHAT, "body": {"messages": MESSAGES, "model": "x"}}, "the served one is 'm'"),
        ({"url": CHAT, "body": {"messages": MESSAGES, "seeds": 1}}, "did you mean 'seed'"),
        ({"url": CHAT, "body": {"messages": MESSAGES, "tools": [{}], "n": 2}}, "'n' must be 1"),
        ({"url": CHAT, "body": {"messages": MESSAGES, "top_logprobs": 3}}, "requires 'logprobs'"),
        ({"url": "/v1/embeddings", "body": {"encoding_format": "x"}}, "'encoding_format' must be"),
    ],
)
def test_wrong_line_is_refused(line: dict[str, Any], message: str) -> None:
    with pytest.raises(LineError, match=message):
        read_request("a", line, "m")


def test_line_with_an_unknown_model_has_openais_code() -> None:
    body = {"messages": MESSAGES, "model": "x"}
    with pytest.raises(LineError) as raised:
        read_request("a", {"url": CHAT, "body": body}, "m")
    line = json.loads(error_line("a", raised.value))
    assert (line["response"]["status_code"], line["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LineError("wrong"), 400),
        (unknown_model("wrong"), 404),
        (PromptError("wrong", 413), 413),
        (PartialFailureError([None, None], [None, PromptError("wrong", 422)]), 422),
    ],
)
def test_error_has_status_and_message(error: Exception, code: int) -> None:
    line = json.loads(error_line("a", error))
    assert line["response"]["status_code"] == code
    assert line["response"]["body"]["error"]["message"] == "wrong" == line["error"]["message"]
