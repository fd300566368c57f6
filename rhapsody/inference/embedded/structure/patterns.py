"""Texts that match a regular expression, for the `pattern` of a JSON schema."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

from rhapsody.inference.protocol.errors import RequestError

if sys.version_info >= (3, 11):
    from re import _parser as parser  # type: ignore[attr-defined]  # the parser of `re` is private
else:
    import sre_parse as parser

__all__ = ["matching_text"]

_MORE = 2
"""How often an unlimited repetition is repeated beyond its minimum."""
_LONGEST = 10_000
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_- .,:;"
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
}


def matching_text(pattern: str, rng: random.Random) -> str:
    """Return a text that matches a pattern.

    Args:
        pattern: The regular expression.
        rng: Random numbers.

    Raises:
        RequestError: The pattern is invalid, or too complex for the embedded model.
    """
    try:
        text = "".join(_write(parser.parse(pattern), rng, {}))
        fits = re.search(pattern, text) is not None
    except (re.error, _UnknownPart, RecursionError, OverflowError) as error:
        raise RequestError(
            f"the pattern {pattern!r:.80} is not supported by the embedded model: {error}.",
            "response_format",
        ) from None
    if not fits:
        raise RequestError(
            f"the pattern {pattern!r:.80} is too complex for the embedded model.",
            "response_format",
        )
    return text


class _UnknownPart(Exception):
    pass


def _write(parts: Any, rng: random.Random, groups: dict[int, str]) -> list[str]:
    return [_one(str(name), value, rng, groups) for name, value in parts]


def _one(name: str, value: Any, rng: random.Random, groups: dict[int, str]) -> str:
    if name == "LITERAL":
        return chr(value)
    if name in ("NOT_LITERAL", "IN", "ANY"):
        return rng.choice(_letters(name, value))
    if name == "BRANCH":
        return "".join(_write(rng.choice(value[1]), rng, groups))
    if name == "SUBPATTERN":
        text = "".join(_write(value[3], rng, groups))
        groups[value[0]] = text
        return text
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, repeated = value
        times = rng.randint(low, min(int(high), low + _MORE))
        text = ""
        for _ in range(times):
            text += "".join(_write(repeated, rng, groups))
            if len(text) > _LONGEST:
                raise _UnknownPart(f"its texts are longer than {_LONGEST} characters")
        return text
    if name == "GROUPREF":
        return groups.get(value, "")
    if name == "AT":
        return ""
    raise _UnknownPart(name.lower())


def _letters(name: str, value: Any) -> list[str]:
    if name == "ANY":
        return list(_LETTERS)
    if name == "NOT_LITERAL":
        return [letter for letter in _LETTERS if ord(letter) != value]
    items = [(str(kind), item) for kind, item in value]
    negated = items[0][0] == "NEGATE"
    inside = [item for item in items if item[0] != "NEGATE"]
    if negated:
        return [letter for letter in _LETTERS if not any(_has(item, letter) for item in inside)]
    found = [letter for letter in _LETTERS if any(_has(item, letter) for item in inside)]
    return found or [_first(item) for item in inside]


def _has(item: tuple[str, Any], letter: str) -> bool:
    kind, value = item
    if kind == "LITERAL":
        return bool(ord(letter) == value)
    if kind == "RANGE":
        return bool(value[0] <= ord(letter) <= value[1])
    return re.match(_CATEGORIES[str(value)], letter) is not None


def _first(item: tuple[str, Any]) -> str:
    kind, value = item
    return chr(value if kind == "LITERAL" else value[0])
