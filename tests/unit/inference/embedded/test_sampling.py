"""Sampling parameters: defaults, ranges, and values without an effect."""

from typing import Any

import pytest

from rhapsody.inference.embedded import RequestError, Sampling


def test_defaults_match_openai() -> None:
    sampling = Sampling.parse({})
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (1.0, 1.0, 0, 1)
    assert sampling.max_tokens is None


def test_none_means_the_default() -> None:
    names = ["max_tokens", "temperature", "top_p", "seed", "stop", "n", "logprobs", "logit_bias"]
    assert Sampling.parse(dict.fromkeys(names)) == Sampling()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 2.0),
        ("seed", "7"),
        ("seed", 2**63),
        ("n", 0),
        ("n", 129),
        ("stop", 3),
        ("stop", ""),
        ("stop", ["ok", ""]),
        ("stop", ["ok", 1]),
        ("ignore_eos", 1),
    ],
)
def test_invalid_value_is_refused_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling.parse({name: value})
    assert caught.value.param == name
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_unknown_parameter_is_refused_with_supported_ones() -> None:
    with pytest.raises(RequestError, match=r"'temprature'.*temperature") as caught:
        Sampling.parse({"temprature": 1})
    assert caught.value.param == "temprature"


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("presence_penalty", 0, 0.5),
        ("frequency_penalty", 0.0, False),
        ("repetition_penalty", 1, 1.2),
        ("min_p", 0, 0.1),
        ("logprobs", False, True),
        ("logprobs", None, 0),
        ("logit_bias", {}, {"7": 1}),
        ("stop_token_ids", [], [2]),
        ("best_of", 1, 2),
    ],
)
def test_unsupported_parameter_accepts_only_neutral_values(
    name: str, neutral: Any, other: Any
) -> None:
    assert Sampling.parse({name: neutral}) == Sampling()
    with pytest.raises(RequestError, match="not supported by the embedded model") as caught:
        Sampling.parse({name: other})
    assert caught.value.param == name


def test_minus_one_disables_top_k_and_seed() -> None:
    sampling = Sampling.parse({"top_k": -1, "seed": -1})
    assert (sampling.top_k, sampling.seed) == (0, None)


def test_min_tokens_must_not_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match="max_tokens=3"):
        Sampling.parse({"min_tokens": 4, "max_tokens": 3})


def test_single_stop_string_becomes_a_tuple() -> None:
    assert Sampling.parse({"stop": "."}).stop == (".",)
