"""Retries: which failures another attempt follows, after which pause, and without which results."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any, NamedTuple

from rhapsody.backends.protocol import Attempt

__all__ = ["RESULT_KEYS", "RetryPolicy", "clear_result", "policy_of"]

RESULT_KEYS = frozenset(
    {
        "exception",
        "execution",
        "exit_code",
        "finish_reason",
        "messages",
        "model_version",
        "parsed",
        "response",
        "response_logprobs",
        "return_value",
        "state",
        "stderr",
        "stdout",
        "tool_calls",
        "usage",
    }
)
"""The keys of a task that are set when an attempt ends."""

MOST_DOUBLINGS = 30
"""The most doublings of a pause; 2.0**1024 would overflow."""


class RetryPolicy(NamedTuple):
    """How often a failed task is repeated, in a workflow and in a session.

    Attributes:
        retries: The number of attempts after the first one.
        backoff: Seconds before the second attempt; each later pause is twice as long.
    """

    retries: int = 0
    backoff: float = 0.1

    def is_last(self, failed: int) -> bool:
        """Return whether no attempt follows the one after a number of failed attempts."""
        return failed >= self.retries

    def pause(self, failed: int) -> float:
        """Return the pause in seconds after an attempt, which a number of failed ones preceded."""
        return self.backoff * 2.0 ** min(failed, MOST_DOUBLINGS)

    def attempt(self, task: Hashable, failed: int) -> Attempt | None:
        """Return the attempt after a number of failed ones; None if a failure is not repeated."""
        return Attempt(task, failed + 1, self.is_last(failed)) if self.retries else None


def clear_result(task: MutableMapping[str, Any]) -> None:
    """Remove the result of an attempt from a task."""
    for key in RESULT_KEYS:
        task.pop(key, None)


def policy_of(task: Mapping[str, Any]) -> RetryPolicy:
    """Return how often a failed task is repeated, from its fields `retries` and `backoff`."""
    backoff = task.get("backoff")
    return RetryPolicy(task.get("retries") or 0, 0.1 if backoff is None else backoff)
