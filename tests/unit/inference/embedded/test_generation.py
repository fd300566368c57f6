"""A generation: tokens, stop strings, and the text that is held back."""

import random
from typing import Any

import pytest

from rhapsody.inference.embedded.generation import Generation
from rhapsody.inference.embedded.ngrams import Ngrams
from rhapsody.inference.embedded.prompt import Prompt
from rhapsody.inference.embedded.sampling import Sampling

NGRAMS = Ngrams("One two three four five six seven.")


def begin(text: str = "One", **sampling: Any) -> Generation:
    parsed = Sampling.parse({"temperature": 0, **sampling})
    return Generation(NGRAMS, Prompt.read(text, parsed, NGRAMS, 200), parsed, random.Random(1))


def pieces(generation: Generation) -> list[str]:
    found = []
    while generation.finish_reason is None:
        found.append(generation.advance())
    return found


def test_each_step_writes_one_token() -> None:
    generation = begin()
    assert (generation.text, generation.tokens) == ("", 0)
    assert generation.advance() == " two"
    assert generation.advance() == " three"
    assert (generation.text, generation.tokens) == (" two three", 2)
    assert generation.finish_reason is None


def test_max_tokens_finishes_with_length() -> None:
    generation = begin(max_tokens=3)
    assert pieces(generation) == [" two", " three", " four"]
    assert generation.finish_reason == "length"


def test_end_of_the_last_sentence_finishes_with_stop() -> None:
    generation = begin()
    assert "".join(pieces(generation)).endswith(" seven.")
    assert generation.finish_reason == "stop"


def test_possible_beginning_of_a_stop_string_is_held_back() -> None:
    generation = begin(stop=" three five")
    assert [generation.advance() for _ in range(3)] == [" two", "", " three four"]


def test_held_back_text_is_dropped_with_the_stop_string() -> None:
    generation = begin(stop="three four")
    assert "".join(pieces(generation)) == generation.text == " two "
    assert generation.finish_reason == "stop"


def test_stop_string_is_ignored_within_min_tokens() -> None:
    generation = begin(stop="two", min_tokens=2, max_tokens=3)
    assert "".join(pieces(generation)) == " two three four"


def test_topic_words_are_preferred_once() -> None:
    ngrams = Ngrams("A red car. A red car. A blue car.")
    sampling = Sampling.parse({"temperature": 0, "max_tokens": 1})
    prompt = Prompt.read("blue. A", sampling, ngrams, 100)
    assert " blue" in prompt.topic
    generation = Generation(ngrams, prompt, sampling, random.Random(1))
    assert generation.advance() == " blue"


@pytest.mark.parametrize("min_tokens", [0, 30])
def test_end_is_not_accepted_before_min_tokens(min_tokens: int) -> None:
    generation = begin(min_tokens=min_tokens)
    pieces(generation)
    assert generation.tokens >= min_tokens
