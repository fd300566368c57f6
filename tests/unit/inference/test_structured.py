"""Structured output: `response_format` as sent, and parsed responses."""

from typing import Any

import pydantic
import pytest

from rhapsody.errors import PromptError
from rhapsody.inference.prompts import Completion
from rhapsody.inference.structured import parsed_response, with_schema

JSON = {"type": "json_object"}


class City(pydantic.BaseModel):
    name: str
    people: int


def completion(*texts: str, reason: str = "stop") -> Completion:
    return Completion(list(texts), [reason] * len(texts), {})


def test_class_is_sent_as_its_schema() -> None:
    sent = with_schema({"response_format": City, "top_p": 0.5})
    assert sent["top_p"] == 0.5
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "City", "schema": City.model_json_schema()},
    }


def test_dict_is_sent_unchanged() -> None:
    assert with_schema({"response_format": JSON}) == {"response_format": JSON}


def test_class_gives_an_instance() -> None:
    city = parsed_response(completion('{"name": "Ulm", "people": 126000}'), City)
    assert city == City(name="Ulm", people=126000)


def test_several_texts_give_several_values() -> None:
    assert parsed_response(completion("1", "2"), JSON) == [1, 2]


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
def test_text_is_not_parsed(response_format: Any) -> None:
    assert parsed_response(completion("plain"), response_format) is None


@pytest.mark.parametrize(("response_format", "text"), [(City, '{"name": 1}'), (JSON, "{")])
def test_mismatch_is_an_error_on_one_line(response_format: Any, text: str) -> None:
    with pytest.raises(PromptError, match="does not match response_format") as raised:
        parsed_response(completion(text), response_format)
    assert raised.value.param == "response_format"
    assert "\n" not in str(raised.value)


def test_cut_text_suggests_raising_max_tokens() -> None:
    with pytest.raises(PromptError, match="cut at max_tokens, raise it"):
        parsed_response(completion('{"name"', reason="length"), City)
