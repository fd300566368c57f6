"""What the key of an AI task covers: its kind, the model, the prompt, and sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhapsody.inference.kinds import FIRST_VERSION, GENERATE
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class

__all__ = ["is_of_version", "prompt_arguments", "served_model"]

FIELDS = (
    *sorted(SAMPLING_FIELDS),
    "adapter",
    "model",
    "prompt",
    "system_prompt",
    "tool_choice",
    "tools",
)


def served_model(backend: Any) -> str | None:
    """Return the model of a backend for the key, with the version of its weights if it changed.

    Args:
        backend: The backend of an AI task.
    """
    model, version = getattr(backend, "model_name", None), getattr(backend, "model_version", None)
    return model if version in (None, FIRST_VERSION) else f"{model} {version}"


def is_of_version(fields: Mapping[str, Any], version: str | None) -> bool:
    """Return whether a response is from weights of a version, or from some of no known version.

    Args:
        fields: The result fields of an AI task.
        version: The version.
    """
    found = fields.get("model_version")
    return {version, None}.issuperset(found if isinstance(found, list) else [found])


def prompt_arguments(model: str | None, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments that the key of a prompt is made from.

    Args:
        model: The model, from `served_model`.
        fields: The fields of an AI task.
    """
    described = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    wanted = described.get("response_format")
    if is_model_class(wanted):
        described["response_format"] = wanted.model_json_schema()
    if (kind := fields.get("kind")) not in (None, GENERATE):
        described["kind"] = kind
    return model, described
