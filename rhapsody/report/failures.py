"""Failures on the page: those that differ only in numbers are one group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rhapsody.backends.core.history import Failure

__all__ = ["FailureGroup", "group_failures"]

NUMBER = re.compile(r"\d+(?:\.\d+)?")


class FailureGroup(NamedTuple):
    """Failures of one backend with the same type and message, apart from numbers in the message.

    Attributes:
        backend: The name of the backend.
        number: How many tasks failed.
        first: The most frequent failure of the group.
        messages: How many different messages there are.
    """

    backend: str
    number: int
    first: Failure
    messages: int


def group_failures(
    failures: Iterable[tuple[str, Sequence[Failure]]],
) -> list[FailureGroup]:
    """Return the groups of failures, the most frequent first.

    Args:
        failures: The failures of each backend, the most frequent first.
    """
    groups: dict[tuple[str, str], FailureGroup] = {}
    for backend, of_backend in failures:
        for failure in of_backend:
            key = (backend, NUMBER.sub("0", failure.reason))
            known = groups.get(key, FailureGroup(backend, 0, failure, 0))
            number, messages = known.number + failure.number, known.messages + 1
            groups[key] = known._replace(number=number, messages=messages)
    return sorted(groups.values(), key=lambda group: -group.number)
