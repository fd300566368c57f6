"""Vectors of texts: length, similarity, labels."""

import math

import pytest

from rhapsody.inference.embedded.pooling.vectors import (
    DIMENSIONS,
    bytes_of,
    cosine,
    embed,
    floats_of,
    probabilities,
)

TEXTS = ["heat", "Heat is energy.", "?!", " ", "é 🎉", "\ud800", "the of", "a" * 1000]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_vector_has_length_one_and_is_reproducible(text: str) -> None:
    vector = embed(text)
    assert len(vector) == DIMENSIONS
    assert math.isclose(cosine(vector, vector), 1)
    assert embed(text) == vector


def test_texts_that_share_words_are_near() -> None:
    query = embed("How is heat measured?")
    near, far = embed("Heat is measured in joules."), embed("The whale followed our ship.")
    assert cosine(query, near) > 0.4
    assert cosine(query, far) < 0.2


def test_probabilities_sum_to_one_and_prefer_the_named_label() -> None:
    found = probabilities("a sad story about whales", ["physics", "story"])
    assert math.isclose(sum(found), 1)
    assert found[1] > 0.9


def test_bytes_hold_float32() -> None:
    assert floats_of(bytes_of([0.5, -1])) == [0.5, -1]
    assert bytes_of([1]) == b"\x00\x00\x80\x3f"
