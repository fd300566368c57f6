"""Values for JSON schemas, checked by pydantic models."""

import datetime
import json
import random
import uuid
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from rhapsody.inference.embedded.structure.schema import JsonWriter
from rhapsody.inference.protocol.errors import RequestError

SEEDS = range(25)


class Node(BaseModel):
    name: str = Field(pattern="^n[0-9]$")
    left: "Node | None" = None
    children: "list[Node]"


class Answer(BaseModel):
    whole: Annotated[int, Field(ge=3, lt=9)]
    even: Annotated[int, Field(multiple_of=2, le=-1)]
    part: Annotated[float, Field(gt=0, le=0.01)]
    free: float
    choice: Literal["a", "b"]
    either: int | str | None
    text: Annotated[str, Field(min_length=5, max_length=8)]
    several: Annotated[list[bool], Field(min_length=2, max_length=3)]
    pair: tuple[int, str]
    table: dict[str, int]
    day: datetime.date
    moment: datetime.datetime
    key: uuid.UUID
    tree: Node
    optional: str = "x"


def write(schema: Any, prompt: str = "", seed: int = 0, words: tuple[str, ...] = ("heat",)) -> Any:
    return JsonWriter(schema, prompt, words, random.Random(seed)).write()


def test_values_are_valid_for_a_model_with_everything() -> None:
    adapter = TypeAdapter(Answer)
    for seed in SEEDS:
        value = write(Answer.model_json_schema(), seed=seed)
        adapter.validate_json(json.dumps(value), strict=True)


def test_same_seed_gives_same_value() -> None:
    schema = Answer.model_json_schema()
    assert write(schema, seed=3) == write(schema, seed=3) != write(schema, seed=4)


def test_numbers_and_quoted_texts_of_the_prompt_are_used() -> None:
    fields = {"a": {"type": "integer"}, "b": {"type": "number"}, "c": {"type": "string"}}
    schema = {"type": "object", "properties": fields}
    found = write(schema, "Mix 12 of 'blue ink' at -3.5 degrees")
    assert found == {"a": 12, "b": -3.5, "c": "blue ink"}


def test_number_out_of_range_is_not_used() -> None:
    assert 1 <= write({"type": "integer", "minimum": 1, "maximum": 9}, "take 100") <= 9


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"const": 5}, 5),
        ({"enum": [None]}, None),
        ({"type": "array", "items": False, "prefixItems": [{"const": 1}]}, [1]),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["a"]}]}, {"a": 1}),
        ({"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"const": 2}}}, 2),
        ({"type": "object"}, {}),
        ({"type": "object", "required": ["a"]}, {"a": "heat"}),
    ],
)
def test_keyword(schema: Any, expected: Any) -> None:
    assert write(schema) == expected


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, "the keyword 'not' is not supported"),
        ({"type": "colour"}, "the type 'colour' is unknown"),
        ({"$ref": "#/$defs/none"}, "names nothing"),
        ({"$ref": "http://example.org"}, "does not begin with '#'"),
        ({"$ref": "#"}, "refers to itself"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never ends"),
        ({"enum": []}, "non-empty list"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no multiple of 1"),
        ({"properties": {"a": 7}}, "a schema must be an object"),
        ({"type": "array", "minItems": "x"}, "a keyword has a wrong value"),
        ({"properties": []}, "a keyword has a wrong value"),
        ({"allOf": [5]}, "a keyword has a wrong value"),
        ({"type": "array", "minItems": 10**9}, "more than 10000 values"),
        ({"type": "string", "minLength": 10**12}, "minLength must be at most"),
    ],
)
def test_unusable_schema_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        write(schema)
