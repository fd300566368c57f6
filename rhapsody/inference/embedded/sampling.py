"""Sampling parameters of the embedded model, validated as vLLM validates them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhapsody.inference.protocol.errors import RequestError

DEFAULT_MAX_TOKENS = 64
MAX_CHOICES = 128
# vLLM treats temperatures below this as zero.
GREEDY_BELOW = 1e-5

# Parameters that this model does not implement: only the values without an effect are accepted.
# None is accepted for every parameter and means its default.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "detokenize": (True,),
    "frequency_penalty": (0,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "presence_penalty": (0,),
    "prompt_logprobs": (False,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "top_logprobs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


def _fail(name: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{name} must be {expected}, got {value!r}.", name)


def _integer(name: str, value: object, low: int, high: int, expected: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _fail(name, value, expected)
    return value


def _number(name: str, value: object, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _fail(name, value, expected)
    try:
        number = float(value)
    except OverflowError:
        raise _fail(name, value, expected) from None
    if not math.isfinite(number):
        raise _fail(name, value, expected)
    return number


def _stop_strings(value: object) -> tuple[str, ...]:
    expected = "a non-empty str or a list of non-empty str"
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)):
        raise _fail("stop", value, expected)
    if not all(isinstance(item, str) and item for item in strings):
        raise _fail("stop", value, expected)
    return tuple(strings)


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    # True == 1 and False == 0 in Python, but `presence_penalty: false` is an error.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a request are picked, and when a completion ends.

    Args:
        max_tokens: Maximum number of tokens; None: 64, or less if the context has less room.
        min_tokens: Number of tokens before the model's end and stop strings are respected.
        temperature: 0 picks the most likely token; higher values make others more likely.
        top_p: Keep the likeliest tokens that together have this probability.
        top_k: Keep this number of the likeliest tokens; 0 or -1 keeps all.
        seed: The same seed gives the same text; None, or -1 as in vLLM, is a random seed.
        stop: Strings before which the text is cut.
        n: Number of completions of the prompt.
        ignore_eos: Continue to `max_tokens` after the model's own end.
        response_format: The JSON schema of a response in JSON; None: a response in words.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    response_format: Mapping[str, Any] | None = None

    @property
    def greedy(self) -> bool:
        """Whether the text does not depend on random numbers."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Sampling:
        """Validate parameters from JSON or from keyword arguments.

        Args:
            values: Parameter names and values; None means a parameter's default.

        Raises:
            RequestError: A name is unknown, a value is out of range or of the wrong type, or the
                embedded model does not support the parameter.
        """
        known: dict[str, object] = {}
        for name, value in values.items():
            if name in _PARSERS:
                if value is not None:
                    known[name] = _PARSERS[name](value)
            elif name not in _NEUTRAL:
                supported = ", ".join(sorted(_PARSERS))
                message = f"Unknown sampling parameter {name!r}. Supported are: {supported}."
                raise RequestError(message, name)
            elif value is not None and not _is_neutral(value, _NEUTRAL[name]):
                message = f"{name}={value!r} is not supported by the embedded model."
                raise RequestError(message, name)
        sampling = cls(**known)  # type: ignore[arg-type]  # each value comes from its parser
        limit = sampling.max_tokens
        if limit is not None and sampling.min_tokens > limit:
            expected = f"at most max_tokens={limit}"
            raise _fail("min_tokens", sampling.min_tokens, expected)
        return sampling


def _max_tokens(value: object) -> int:
    return _integer("max_tokens", value, 1, 2**63 - 1, "an int of at least 1")


def _min_tokens(value: object) -> int:
    return _integer("min_tokens", value, 0, 2**63 - 1, "an int of at least 0")


def _temperature(value: object) -> float:
    expected = "a finite number of at least 0"
    number = _number("temperature", value, expected)
    if number < 0:
        raise _fail("temperature", value, expected)
    return number


def _top_p(value: object) -> float:
    expected = "a number above 0 and at most 1"
    number = _number("top_p", value, expected)
    if not 0 < number <= 1:
        raise _fail("top_p", value, expected)
    return number


def _top_k(value: object) -> int:
    expected = "an int of at least 1, or 0 or -1 to keep all tokens"
    return max(0, _integer("top_k", value, -1, 2**63 - 1, expected))


def _seed(value: object) -> int | None:
    seed = _integer("seed", value, -(2**63), 2**63 - 1, "an int of 64 bits")
    return None if seed == -1 else seed


def _n(value: object) -> int:
    return _integer("n", value, 1, MAX_CHOICES, f"an int from 1 to {MAX_CHOICES}")


def _ignore_eos(value: object) -> bool:
    if not isinstance(value, bool):
        raise _fail("ignore_eos", value, "true or false")
    return value


def _response_format(value: object) -> Mapping[str, Any] | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    named = value.get("json_schema") if isinstance(value, Mapping) else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        expected = (
            '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": '
            '{"name": ..., "schema": ...}}'
        )
        raise _fail("response_format", value, expected)
    return schema


_PARSERS = {
    "max_tokens": _max_tokens,
    "min_tokens": _min_tokens,
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "seed": _seed,
    "stop": _stop_strings,
    "n": _n,
    "ignore_eos": _ignore_eos,
    "response_format": _response_format,
}

PARAMETERS = frozenset(_PARSERS) | frozenset(_NEUTRAL)
