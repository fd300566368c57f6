"""How long prompts take, by the rates of the responses before."""

from typing import Any

import pytest

from rhapsody.walltime.token_rates import LATEST, TYPICAL, TokenRates

FIELDS: dict[str, Any] = {"prompt": "hi", "max_tokens": 1000}


@pytest.fixture
def rates() -> TokenRates:
    return TokenRates()


def note(rates: TokenRates, tokens: int, seconds: float, name: str = "ask", **changes: Any) -> None:
    usage = {"completion_tokens": tokens}
    rates.note("model", name, {**FIELDS, **changes}, usage, seconds)


def seconds(rates: TokenRates, name: str = "ask", **changes: Any) -> float | None:
    return rates.seconds("model", name, {**FIELDS, **changes})


def test_nothing_is_known_before_a_response(rates: TokenRates) -> None:
    assert seconds(rates) is None


def test_most_tokens_at_the_rate_of_the_backend(rates: TokenRates) -> None:
    note(rates, 100, 10.0, name="another")
    assert seconds(rates) == 100.0
    assert seconds(rates, max_tokens=None) is None
    assert rates.seconds("another backend", "ask", FIELDS) is None


def test_fastest_of_the_latest_responses_counts(rates: TokenRates) -> None:
    note(rates, 100, 1.0)
    note(rates, 100, 100.0)  # it waited
    assert seconds(rates) == 10.0
    for _ in range(LATEST):
        note(rates, 100, 10.0, name="another")
    assert seconds(rates) == 100.0


def test_short_response_does_not_say_how_fast_a_backend_is(rates: TokenRates) -> None:
    note(rates, 1, 0.5)
    assert seconds(rates) is None


def test_typical_length_counts_instead_of_the_bound(rates: TokenRates) -> None:
    for tokens in range(TYPICAL - 1):
        note(rates, 1 + tokens, 1.0)
    note(rates, 100, 10.0, name="another")
    assert seconds(rates) == 100.0
    note(rates, 900, 90.0)
    assert seconds(rates) == 0.3, "the median of 1, 2, 3, 4 and 900 tokens"
    assert seconds(rates, max_tokens=2000) == 200.0, "another kind of prompt"


def test_typical_length_is_enough_without_a_bound(rates: TokenRates) -> None:
    for _ in range(TYPICAL):
        note(rates, 100, 10.0, max_tokens=None)
    assert seconds(rates, max_tokens=None) == 10.0


@pytest.mark.parametrize(
    "changes", [{"prompt": ["one", "two"]}, {"n": 2}], ids=["list", "several responses"]
)
def test_responses_that_are_counted_together_say_nothing(
    rates: TokenRates, changes: dict[str, Any]
) -> None:
    note(rates, 100, 10.0, **changes)
    assert seconds(rates) is None


def test_chat_messages_are_one_prompt(rates: TokenRates) -> None:
    note(rates, 100, 10.0, prompt=[{"role": "user", "content": "hi"}])
    assert seconds(rates) == 100.0


def test_response_without_tokens_says_nothing(rates: TokenRates) -> None:
    rates.note("model", "ask", FIELDS, None, 1.0)
    note(rates, 0, 1.0)
    note(rates, 100, 0.0)
    assert seconds(rates) is None
