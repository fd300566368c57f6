"""Structured output: what is sent for it, and what comes of the text."""

from typing import Any

import pydantic
import pytest

from rhapsody.api.errors import PromptError
from rhapsody.inference.prompts import Completion
from rhapsody.inference.structured import parsed_response, with_schema

JSON = {"type": "json_object"}


class City(pydantic.BaseModel):
    name: str
    people: int


def completion(*texts: str, reason: str = "stop") -> Completion:
    return Completion(list(texts), [reason] * len(texts), {})


def test_a_class_is_sent_as_its_schema() -> None:
    sent = with_schema({"response_format": City, "top_p": 0.5})
    assert sent["top_p"] == 0.5
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "City", "schema": City.model_json_schema()},
    }


def test_a_dict_is_sent_as_it_is() -> None:
    assert with_schema({"response_format": JSON}) == {"response_format": JSON}


def test_a_class_gives_an_instance() -> None:
    made = parsed_response(completion('{"name": "Ulm", "people": 126000}'), City)
    assert made == City(name="Ulm", people=126000)


def test_several_responses_give_several() -> None:
    assert parsed_response(completion("1", "2"), JSON) == [1, 2]


@pytest.mark.parametrize("wanted", [None, {"type": "text"}])
def test_text_stays_text(wanted: Any) -> None:
    assert parsed_response(completion("plain"), wanted) is None


@pytest.mark.parametrize(("wanted", "text"), [(City, '{"name": 1}'), (JSON, "{")])
def test_another_form_is_an_error_in_one_line(wanted: Any, text: str) -> None:
    with pytest.raises(PromptError, match="not of the form that response_format asks") as raised:
        parsed_response(completion(text), wanted)
    assert raised.value.param == "response_format"
    assert "\n" not in str(raised.value)


def test_a_text_that_was_cut_says_what_to_do() -> None:
    with pytest.raises(PromptError, match="cut at max_tokens; allow more"):
        parsed_response(completion('{"name"', reason="length"), City)
