"""Structured output: `response_format` as sent to servers, and responses parsed by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rhapsody.errors import PromptError
from rhapsody.inference.prompts import Completion
from rhapsody.sampling import is_model_class
from rhapsody.validation import plain_numbers

__all__ = ["parsed_response", "with_schema"]

PARSED_KINDS = ("json_schema", "json_object")


def with_schema(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters in the form that is sent.

    A pydantic model class is replaced by its JSON schema, and NumPy scalars by numbers.
    """
    sent = {name: plain_numbers(value) for name, value in sampling.items()}
    format_ = sent.get("response_format")
    if is_model_class(format_):
        schema = {"name": format_.__name__, "schema": format_.model_json_schema()}
        sent["response_format"] = {"type": "json_schema", "json_schema": schema}
    return sent


def parsed_response(completion: Completion, response_format: Any) -> Any:
    """Parse a response by its `response_format`.

    Args:
        completion: The completion.
        response_format: A pydantic model class, a dict as in OpenAI's API, or None.

    Returns:
        For a model class, its instance; for JSON formats, the decoded value; otherwise None. A
        list of them if the completion has several texts.

    Raises:
        PromptError: A text does not match the format, for example because `max_tokens` cut it.
    """
    if not is_model_class(response_format) and (
        not isinstance(response_format, Mapping) or response_format.get("type") not in PARSED_KINDS
    ):
        return None
    read = response_format.model_validate_json if is_model_class(response_format) else json.loads
    objects = []
    for text, reason in zip(completion.texts, completion.finish_reasons, strict=True):
        try:
            objects.append(read(text))
        except ValueError as error:
            cut = "it was cut at max_tokens, raise it: " if reason == "length" else ""
            what = " ".join(str(error).split())
            raise PromptError(
                f"the response does not match response_format: {cut}{what:.300}",
                422,
                "ResponseFormatError",
                "response_format",
            ) from error
    return objects[0] if len(objects) == 1 else objects
