"""The fields of tasks as pydantic types: what each may hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from typing_extensions import TypedDict

from rhapsody.errors import ConfigurationError
from rhapsody.inference.kinds import EXPECTED_PROMPTS, GENERATE, KINDS, is_prompt
from rhapsody.resources import MAX_PRIORITY
from rhapsody.sampling import is_model_class
from rhapsody.validation import Count, FieldValidator, NonEmptyStr, Seconds, ZeroOrMore, must_be

__all__ = [
    "AI_FIELDS",
    "COMPUTE_FIELDS",
    "UID_DESCRIPTION",
    "check_folder_uid",
    "is_chat",
    "is_uid",
]


UID_DESCRIPTION = "a non-empty string without '/'"
AnyMapping = Annotated[
    InstanceOf[dict[str, Any]] | InstanceOf[Mapping[str, Any]],  # the first is much quicker
    Field(union_mode="left_to_right", description="a dict"),
]
Argument = Annotated[
    InstanceOf[str] | InstanceOf[int] | InstanceOf[Real] | InstanceOf[os.PathLike[str]],
    Field(union_mode="left_to_right"),
]
"""One argument of an executable; numbers, including NumPy's, are passed as `str` of them."""


def is_chat(value: Any) -> bool:
    """Return whether a value is a list of messages, each a mapping with a role."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def is_uid(value: Any) -> bool:
    """Return whether a value can be a uid: part of the name of a file, and not a path."""
    return isinstance(value, str) and value != "" and "/" not in value and "\0" not in value


def check_folder_uid(uid: Any) -> None:
    """Check the uid of a session or an engine, which is the name of a directory.

    Raises:
        ConfigurationError: It cannot be one.
    """
    if not is_uid(uid) or uid in (".", ".."):
        raise ConfigurationError(must_be("uid", "the name of a directory without '/'", uid))


def _check_uid(uid: str) -> str:
    if not is_uid(uid):
        raise ValueError
    return uid


def _check_prompt(prompt: Any) -> Any:
    # Empty texts are refused by the backend, so that they fail only their own task.
    if not any(is_prompt(kind, prompt) for kind in KINDS):
        raise ValueError
    return prompt


def _check_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError
    return kind


def _check_response_format(wanted: Any) -> Any:
    if is_model_class(wanted):
        return wanted
    if not isinstance(wanted, Mapping) or not isinstance(wanted.get("type"), str):
        raise ValueError
    return wanted


class CommonFields(TypedDict, total=False):
    """Fields of both kinds of task."""

    uid: Annotated[
        StrictStr,
        AfterValidator(_check_uid),
        Field(description=UID_DESCRIPTION),
    ]
    backend: Annotated[StrictStr, Field(description="the name of a backend, such as backend.name")]
    timeout: Seconds
    retries: ZeroOrMore
    backoff: Annotated[
        StrictFloat, Field(ge=0, description="a number of seconds that is not negative")
    ]
    journal: Annotated[StrictBool, Field(description="a boolean")]
    cache: Annotated[StrictBool, Field(description="a boolean")]
    version: Annotated[StrictStr, Field(description="a string")]
    inputs: Annotated[list[Argument], Field(description="a list of paths")]
    outputs: Annotated[list[Argument], Field(description="a list of paths")]
    priority: Annotated[
        StrictInt,
        Field(
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description=f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}",
        ),
    ]
    task_backend_specific_kwargs: AnyMapping


class ComputeFields(CommonFields, total=False):
    """Fields of a ComputeTask."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    queue_timeout: Seconds
    function: Annotated[Callable[..., Any], Field(description="callable")]
    args: Annotated[
        InstanceOf[tuple[Any, ...]] | InstanceOf[list[Any]],
        Field(union_mode="left_to_right", description="a tuple or a list"),
    ]
    kwargs: AnyMapping
    executable: Annotated[
        NonEmptyStr | InstanceOf[os.PathLike[str]],
        Field(description="a path or the name of a program"),
    ]
    arguments: Annotated[
        Annotated[list[Argument], Strict()] | Annotated[tuple[Argument, ...], Strict()],
        Field(description="a list of strings"),
    ]
    capture_stdio: Annotated[StrictBool, Field(description="a boolean")]


class AIFields(CommonFields, total=False):
    """Fields of an AITask."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    prompt: Annotated[
        Any,
        AfterValidator(_check_prompt),
        Field(description=EXPECTED_PROMPTS[GENERATE]),
    ]
    kind: Annotated[
        StrictStr,
        AfterValidator(_check_kind),
        Field(description=" or ".join(map(repr, KINDS))),
    ]
    model: Annotated[StrictStr, Field(description="the name of a model")]
    adapter: Annotated[NonEmptyStr, Field(description="the name of an adapter")]
    system_prompt: Annotated[StrictStr, Field(description="a string")]
    temperature: Annotated[StrictFloat, Field(ge=0, description="a number of at least 0")]
    max_tokens: Count
    top_p: Annotated[StrictFloat, Field(gt=0, le=1, description="a number above 0 and at most 1")]
    top_k: Annotated[
        StrictInt,
        Field(ge=-1, description="a whole number of at least 1, or 0 or -1 for all tokens"),
    ]
    stop: Annotated[
        NonEmptyStr
        | Annotated[list[NonEmptyStr], Strict()]
        | Annotated[tuple[NonEmptyStr, ...], Strict()],
        Field(description="a non-empty string or a list of them"),
    ]
    seed: Annotated[StrictInt, Field(description="a whole number")]
    n: Count
    response_format: Annotated[
        Any,
        AfterValidator(_check_response_format),
        Field(
            description='a pydantic model class, or a dict such as {"type": "json_schema", '
            '"json_schema": {"name": ..., "schema": ...}}'
        ),
    ]


COMPUTE_FIELDS = FieldValidator(ComputeFields)
AI_FIELDS = FieldValidator(AIFields)
