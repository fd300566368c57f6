"""Values that are valid for a JSON schema, with words and numbers of the prompt in them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rhapsody.inference.embedded.structure.patterns import matching_text
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["JsonWriter"]

_ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "additionalProperties",
        "default",
        "definitions",
        "deprecated",
        "description",
        "discriminator",
        "examples",
        "readOnly",
        "strict",
        "title",
        "writeOnly",
    }
)
_KEYWORDS = _ANNOTATIONS | {
    "$ref",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "prefixItems",
    "properties",
    "required",
    "type",
}
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "PT1M",
    "email": "a@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_DEEPEST = 6
"""Below this depth optional parts are left out, so that recursive schemas end."""
_LIMIT = 40
_MOST_VALUES = 10_000
_LONGEST = 100_000
"""Largest `minLength`."""
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_QUOTED = re.compile(r"['\"\u201c]([^'\"\u201c\u201d\n]{1,80})['\"\u201d]")


class JsonWriter:
    """Writes values for one schema.

    Args:
        schema: The schema.
        prompt: The text whose numbers and quoted texts the values repeat, in order.
        words: Words for other texts.
        rng: Random numbers.
    """

    def __init__(
        self, schema: Mapping[str, Any], prompt: str, words: Iterable[str], rng: random.Random
    ) -> None:
        self._root = schema
        self._words = list(words) or ["nothing"]
        self._rng = rng
        self._values = 0
        self._numbers = [float(number) for number in _NUMBER.findall(prompt)]
        self._quoted: list[str] = _QUOTED.findall(prompt)

    def write(self) -> Any:
        """Return a value that is valid for the schema.

        Raises:
            RequestError: The schema is invalid, or has keywords that the model does not know.
        """
        try:
            return self._value(self._root, 0)
        except RequestError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise _refused(f"a keyword has a wrong value ({error})") from None

    def _value(self, schema: Any, depth: int) -> Any:
        if depth > _LIMIT:
            raise _refused("it never ends")
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _refused(f"it needs more than {_MOST_VALUES} values")
        if schema is True or schema == {}:
            return self._text({})
        if not isinstance(schema, Mapping):
            raise _refused(f"a schema must be an object, got {schema!r:.80}")
        for name in schema:
            if name not in _KEYWORDS:
                raise _refused(f"the keyword {name!r} is not supported by the embedded model")
        schema = self._merged(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._pick(schema["enum"])
        for name in ("anyOf", "oneOf"):
            if name in schema:
                rest = {key: value for key, value in schema.items() if key != name}
                choice = self._pick(self._endings(schema[name], depth))
                choice = self._merged(choice) if isinstance(choice, Mapping) else {}
                return self._value({**rest, **choice}, depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = self._pick(kind)
        if kind is None:
            named = {"properties": "object", "required": "object", "items": "array"}
            kind = next((named[name] for name in named if name in schema), "string")
        writers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, depth),
            "array": lambda: self._array(schema, depth),
            "string": lambda: self._text(schema),
            "integer": lambda: self._number(schema, whole=True),
            "number": lambda: self._number(schema, whole=False),
            "boolean": lambda: self._rng.random() < 0.5,
            "null": lambda: None,
        }
        if kind not in writers:
            raise _refused(f"the type {kind!r:.40} is unknown")
        return writers[kind]()

    def _merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return a schema with its references and `allOf` replaced by what they say."""
        merged = dict(schema)
        for _ in range(_LIMIT):
            reference, parts = merged.pop("$ref", None), merged.pop("allOf", None)
            if reference is None and parts is None:
                return merged
            more = [self._resolve(reference)] if reference is not None else []
            for part in more + list(parts or ()):
                both = {**merged.get("properties", {}), **part.get("properties", {})}
                required = [*merged.get("required", ()), *part.get("required", ())]
                merged = {**part, **merged, **({"properties": both} if both else {})}
                if required:
                    merged["required"] = required
                for name in ("$ref", "allOf"):
                    if name in part:
                        merged[name] = part[name]
        raise _refused("a reference refers to itself")

    def _resolve(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._root
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(f"the reference {reference!r:.80} does not begin with '#'")
        for part in reference[1:].split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if found else None
        if not isinstance(found, Mapping):
            raise _refused(f"the reference {reference!r:.80} names nothing")
        return found

    def _endings(self, choices: list[Any], depth: int) -> list[Any]:
        """Return the choices, in deep places only those that surely end."""
        if depth < _DEEPEST:
            return choices
        plain = [c for c in choices if isinstance(c, Mapping) and not {"$ref", "items"} & c.keys()]
        return plain or choices

    def _pick(self, choices: Any) -> Any:
        if not isinstance(choices, list) or not choices:
            raise _refused(f"a choice must be a non-empty list, got {choices!r:.80}")
        return self._rng.choice(choices)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        kept = [name for name in properties if depth < _DEEPEST or name in required]
        most = schema.get("maxProperties", len(kept))
        kept = sorted(kept, key=lambda name: name not in required)[: max(most, len(required))]
        written = {
            name: self._value(properties[name], depth + 1) for name in properties if name in kept
        }
        for name in required - properties.keys():
            written[name] = self._text({})
        return written

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = list(schema.get("prefixItems", ()))
        low = schema.get("minItems", len(first) if depth < _DEEPEST else 0)
        usual = low if depth >= _DEEPEST else max(low, len(first) + self._rng.randint(1, 2))
        if schema.get("items") is False:
            usual = max(low, len(first))
        size = min(usual, schema.get("maxItems", usual))
        rest = schema.get("items", {"type": "string"})
        return [
            self._value(first[at] if at < len(first) else rest, depth + 1) for at in range(size)
        ]

    def _text(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            return matching_text(schema["pattern"], self._rng)
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        if self._quoted:
            text = self._quoted.pop(0)
        else:
            text = " ".join(self._rng.sample(self._words, min(2, len(self._words))))
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if low > _LONGEST:
            raise _refused(f"minLength must be at most {_LONGEST}, got {low!r:.40}")
        while len(text) < low:
            text = f"{text} {text}" if text else "a"
        return str(text)[: high if high is not None else max(low, 200)]

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> int | float:
        step = schema.get("multipleOf") or (1 if whole else 0)
        low, high = _bounds(schema, step or 1e-6)
        for given in self._numbers:
            if low <= given <= high and (not step or given % step == 0):
                self._numbers.remove(given)
                return int(given) if whole else given
        low, high = _range(low, high)
        if not step:
            return round(self._rng.uniform(low, high), 3) if high - low > 0.01 else low
        least, most = -int(-low // step), int(high // step)
        if least > most:
            raise _refused(f"no multiple of {step} lies from {low} to {high}")
        number = self._rng.randint(least, most) * step
        return int(number) if whole else number


def _bounds(schema: Mapping[str, Any], step: float) -> tuple[float, float]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    return (
        low if above is None else max(low, above + step),
        high if below is None else min(high, below - step),
    )


def _range(low: float, high: float) -> tuple[float, float]:
    """Return the bounds with usual numbers in place of missing ones."""
    if low == float("-inf"):
        low = min(0, high - 100 if high != float("inf") else 0)
    return low, max(low + 100, 0) if high == float("inf") else high


def _refused(reason: str) -> RequestError:
    return RequestError(f"The JSON schema cannot be used: {reason}.", "response_format")
