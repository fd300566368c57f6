"""The body of `/generate`."""

import json
from typing import Any

import pytest

from rhapsody.inference.http.bodies import BodyError, GenerateBody


async def parse(**body: Any) -> GenerateBody:
    return await GenerateBody.parse(json.dumps(body).encode())


async def test_texts_and_chats_are_prompts() -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert (await parse(prompts=["hi", chat])).prompts == ["hi", chat]


async def test_default_timeout_is_300_seconds() -> None:
    assert (await parse(prompts=["hi"])).timeout == 300


async def test_sampling_parameters_are_extra_fields() -> None:
    body = await parse(prompts=["hi"], max_tokens=8, temperature=0.5, stop=None)
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
async def test_invalid_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyError) as refused:
        await parse(**body)
    assert refused.value.param == param
    assert param in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"hi"',
        b'{"prompts": ["\xff"]}',
        b'{"prompts": ["a",]}',
        b'{"prompts": ["a"],}',
        b'{"prompts": ["a"]} 1',
        b'{"prompts": ["a"] "n": 1}',
        b'{prompts: ["a"]}',
        b'{"prompts": ' + b"[" * 100_000,
    ],
)
async def test_body_must_be_a_json_object(data: bytes) -> None:
    with pytest.raises(BodyError):
        await GenerateBody.parse(data)


async def test_blanks_are_ignored() -> None:
    data = b' { "prompts" : [ "a" , "b" ] , "timeout" : 5 } '
    body = await GenerateBody.parse(data)
    assert (body.prompts, body.timeout) == (["a", "b"], 5)


async def test_wrong_prompt_is_named_by_its_position() -> None:
    with pytest.raises(BodyError, match=r"prompts\.1: must be a text or a list of messages, got 7"):
        await parse(prompts=["a", 7])
