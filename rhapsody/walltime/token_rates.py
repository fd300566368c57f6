"""How long prompts take, by the tokens that backends generated per second in this run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

__all__ = ["TokenRates"]

LATEST = 64
"""How many of the latest responses count."""
LONG_ENOUGH = 32
"""Fewest tokens of a response that says how fast a backend is. A shorter one takes mostly the time
to its first token."""
TYPICAL = 5
"""Responses after which their median length says how long the next one is."""


class TokenRates:
    """Estimates the duration of prompts from the responses of this run.

    An estimate is low rather than high, since a prompt that could end must not be held: the fastest
    of the latest responses counts, because the others may have waited, and the typical length of
    responses, because `max_tokens` is an upper bound.
    """

    def __init__(self) -> None:
        self._rates: dict[str, deque[float]] = {}
        self._lengths: dict[tuple[str, str, Any], deque[int]] = {}

    def note(
        self,
        backend: str,
        name: str,
        fields: Mapping[str, Any],
        usage: Mapping[str, int] | None,
        seconds: float,
    ) -> None:
        """Take account of a response.

        Args:
            backend: The name of the backend.
            name: The name of the function that made the prompt; "" for all others.
            fields: The fields of the prompt. Lists and several responses count for nothing.
            usage: The usage of the response; None: it has none.
            seconds: How long it took.
        """
        tokens = (usage or {}).get("completion_tokens") or 0
        if not tokens or (fields.get("n") or 1) > 1 or _is_list(fields.get("prompt")):
            return
        lengths = self._lengths.setdefault(_kind(backend, name, fields), deque(maxlen=LATEST))
        lengths.append(tokens)
        if tokens >= LONG_ENOUGH and seconds > 0:
            self._rates.setdefault(backend, deque(maxlen=LATEST)).append(tokens / seconds)

    def seconds(self, backend: str, name: str, fields: Mapping[str, Any]) -> float | None:
        """Return how long a prompt will take at least; None if that is not known.

        Args:
            backend: The name of the backend.
            name: The name of the function that made the prompt; "" for all others.
            fields: The fields of the prompt.
        """
        rates = self._rates.get(backend)
        lengths = self._lengths.get(_kind(backend, name, fields), ())
        bounds = [median(lengths)] if len(lengths) >= TYPICAL else []
        if fields.get("max_tokens") is not None:
            bounds.append(fields["max_tokens"])
        return min(bounds) / max(rates) if rates and bounds else None


def _kind(backend: str, name: str, fields: Mapping[str, Any]) -> tuple[str, str, Any]:
    return backend, name, fields.get("max_tokens")


def _is_list(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], Mapping)
