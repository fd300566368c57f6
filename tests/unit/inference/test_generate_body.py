"""The body of `/generate`."""

import json
from typing import Any

import pytest

from rhapsody.inference.generate_body import BadBody, GenerateBody


def parse(**body: Any) -> GenerateBody:
    return GenerateBody.parse(json.dumps(body).encode())


def test_texts_and_chats_are_prompts() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert parse(prompts=["hi", chat]).prompts == ["hi", chat]


def test_the_timeout_is_300_seconds_where_none_is_given() -> None:
    assert parse(prompts=["hi"]).timeout == 300


def test_sampling_parameters_go_under_their_own_names() -> None:
    body = parse(prompts=["hi"], max_tokens=8, temperature=0.5, stop=None)
    assert body.sampling() == {"max_tokens": 8, "temperature": 0.5}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "hi"}, "prompts"),
        ({"prompts": [7]}, "prompts"),
        ({"prompts": ["hi"], "timeout": 0}, "timeout"),
        ({"prompts": ["hi"], "timeout": "soon"}, "timeout"),
        ({"prompts": ["hi"], "system_prompt": 7}, "system_prompt"),
        ({"prompts": ["hi"], "temprature": 1}, "temprature"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadBody) as refused:
        parse(**body)
    assert refused.value.param == param
    assert param in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"hi"', b'{"prompts": ["\xff"]}'])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadBody):
        GenerateBody.parse(data)
