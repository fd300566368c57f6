"""Structured output: what `response_format` asks for, and responses parsed by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rhapsody.api.errors import PromptError
from rhapsody.inference.prompts import Completion
from rhapsody.sampling import is_model_class

__all__ = ["parsed_response", "with_schema"]

PARSED_KINDS = ("json_schema", "json_object")


def with_schema(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters as they are sent: a model class becomes its JSON schema."""
    sent = dict(sampling)
    wanted = sent.get("response_format")
    if is_model_class(wanted):
        schema = {"name": wanted.__name__, "schema": wanted.model_json_schema()}
        sent["response_format"] = {"type": "json_schema", "json_schema": schema}
    return sent


def parsed_response(completion: Completion, response_format: Any) -> Any:
    """Return the response as the object that it describes, in the shape of `response`.

    Args:
        completion: What the model made of the prompt.
        response_format: What was asked for; None where nothing was, or texts.

    Returns:
        Instances where a model class was asked for, what JSON says where JSON was, else None.

    Raises:
        PromptError: The text is not of that form, such as one that `max_tokens` has cut.
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
            cut = "it was cut at max_tokens; allow more: " if reason == "length" else ""
            what = " ".join(str(error).split())
            raise PromptError(
                f"the response is not of the form that response_format asks for: {cut}{what:.300}",
                422,
                "ResponseFormatError",
                "response_format",
            ) from error
    return objects[0] if len(objects) == 1 else objects
