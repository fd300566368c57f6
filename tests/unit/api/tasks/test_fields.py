"""The types of task fields: what they accept and what they leave alone."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from rhapsody.api.tasks.fields import AI_FIELDS, COMPUTE_FIELDS, is_chat


class Point(NamedTuple):
    x: int
    y: int


MESSAGE = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([MESSAGE], True),
        ((MESSAGE, MESSAGE), True),
        ([], False),
        ([MESSAGE, "hello"], False),
        ([{"content": "no role"}], False),
        ("hello", False),
        (MESSAGE, False),
    ],
    ids=repr,
)
def test_chat_is_a_list_of_messages_with_roles(value: Any, expected: bool) -> None:
    assert is_chat(value) is expected


@pytest.mark.parametrize(
    "fields",
    [
        {"args": [object()]},
        {"args": Point(1, 2)},
        {"kwargs": OrderedDict(a=1)},
        {"task_backend_specific_kwargs": {"env": {}}},
    ],
    ids=repr,
)
def test_container_of_the_user_is_passed_on_uncopied(fields: dict[str, Any]) -> None:
    validated = COMPUTE_FIELDS.validate(fields)
    assert all(validated[field] is value for field, value in fields.items())


def test_prompt_is_passed_on_uncopied() -> None:
    prompts = ["one", "two"]
    assert AI_FIELDS.validate({"prompt": prompts})["prompt"] is prompts


@pytest.mark.parametrize("field", ["executable", "uid"])
def test_non_utf_8_name_is_accepted(field: str) -> None:
    name = "caf\udce9"  # as os.fsdecode gives it
    assert COMPUTE_FIELDS.validate({field: name}) == {field: name}


def test_argument_may_be_a_number() -> None:
    arguments = ["-n", 1, 2.5, True]
    assert COMPUTE_FIELDS.validate({"arguments": arguments})["arguments"] == arguments


@pytest.mark.parametrize("uid", ["", "a/b", "a\0b", 7])
def test_uid_must_be_a_file_name(uid: Any) -> None:
    with pytest.raises(ValidationError):
        COMPUTE_FIELDS.validate({"uid": uid})
