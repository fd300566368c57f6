"""The sampling parameters of a prompt, which are passed to its engine."""

from __future__ import annotations

from typing import Any, TypeGuard

__all__ = ["SAMPLING_FIELDS", "is_model_class"]

SAMPLING_FIELDS = frozenset(
    {
        "bad_words",
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "repetition_penalty",
        "response_format",
        "seed",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""Names of vLLM and the OpenAI API; their values are passed on unchanged."""


def is_model_class(response_format: Any) -> TypeGuard[Any]:
    """Return whether a `response_format` is a pydantic model class, without importing pydantic."""
    return isinstance(response_format, type) and hasattr(response_format, "model_json_schema")
