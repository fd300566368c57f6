"""What the key of an AI task covers: its kind, the model, the prompt, and sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhapsody.inference.kinds import GENERATE
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class

__all__ = ["prompt_arguments"]

FIELDS = (*sorted(SAMPLING_FIELDS), "adapter", "model", "prompt", "system_prompt", "tools")


def prompt_arguments(model: str | None, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments that the key of a prompt is made from.

    Args:
        model: The model that the backend serves.
        fields: The fields of an AI task.
    """
    described = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    wanted = described.get("response_format")
    if is_model_class(wanted):
        described["response_format"] = wanted.model_json_schema()
    if (kind := fields.get("kind")) not in (None, GENERATE):
        described["kind"] = kind
    return model, described
