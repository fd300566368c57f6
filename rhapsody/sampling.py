"""The sampling parameters that a prompt may carry to its engine."""

from __future__ import annotations

__all__ = ["SAMPLING_FIELDS"]

SAMPLING_FIELDS = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""Under the names that vLLM and the OpenAI API give them; passed on as they are."""
