"""Bodies of OpenAI requests: fields that are used, ignored or refused."""

from typing import Any

import pytest

from rhapsody.inference.embedded.chat import render_prompt
from rhapsody.inference.embedded.openai_body import read_chat, read_completion, unknown_model
from rhapsody.inference.protocol.errors import RequestError

MESSAGES = [{"role": "user", "content": "Why?"}]


def refusal(body: dict[str, Any], chat: bool = True) -> RequestError:
    read = read_chat if chat else read_completion
    with pytest.raises(RequestError) as raised:
        read(body, "tiny")
    return raised.value


def test_chat_is_rendered_as_one_prompt() -> None:
    request = read_chat({"model": "tiny", "messages": MESSAGES, "max_tokens": 3}, "tiny")
    assert request.prompts == [render_prompt("Why?")]
    assert request.sampling.max_tokens == 3
    assert not request.stream
    assert not request.echo


def test_completion_takes_one_prompt_or_several() -> None:
    assert read_completion({"prompt": "a"}, "tiny").prompts == ["a"]
    assert read_completion({"prompt": ["a", "b"], "echo": True}, "tiny").prompts == ["a", "b"]


def test_max_completion_tokens_means_max_tokens() -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 5, "max_tokens": 5}
    assert read_chat(body, "tiny").sampling.max_tokens == 5


def test_contradicting_limits_are_refused() -> None:
    error = refusal({"messages": MESSAGES, "max_completion_tokens": 5, "max_tokens": 6})
    assert "must not differ" in str(error)


def test_stream_options_ask_for_usage() -> None:
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    request = read_chat(body, "tiny")
    assert request.stream
    assert request.include_usage


def test_stream_options_require_a_stream() -> None:
    error = refusal({"messages": MESSAGES, "stream_options": {}})
    assert error.param == "stream_options"


def test_unknown_stream_option_is_refused_if_set() -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "stream": True}
    read_chat({**body, "stream_options": {"continuous_usage_stats": False}}, "tiny")
    refusal({**body, "stream_options": {"continuous_usage_stats": True}})


@pytest.mark.parametrize(
    "field",
    [{"user": "me"}, {"seed": None}, {"tools": []}, {"top_logprobs": 0}, {"anything": None}],
)
def test_fields_without_effect_are_ignored(field: dict[str, Any]) -> None:
    assert read_chat({"messages": MESSAGES, **field}, "tiny") == read_chat(
        {"messages": MESSAGES}, "tiny"
    )


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"suffix": "x"}, "suffix"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_unsupported_field_is_refused_by_name(field: dict[str, Any], param: str) -> None:
    error = refusal({"messages": MESSAGES, **field})
    assert error.param == param
    assert "not supported by the embedded model" in str(error)


def test_other_model_is_not_found() -> None:
    error = refusal({"model": "other", "messages": MESSAGES})
    assert (error.code, error.message) == (404, unknown_model("other").message)


def test_token_ids_are_not_supported() -> None:
    assert "token ids are not supported" in str(refusal({"prompt": [1, 2]}, chat=False))
