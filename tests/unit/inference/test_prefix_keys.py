"""Hashes of the beginnings of prompts."""

import pytest

from rhapsody.inference.prefix_keys import BOUNDARIES, LONGEST_PREFIX, prefix_keys

SHARED = "A long document. " * 1000


@pytest.mark.parametrize(("length", "keys"), [(0, 0), (511, 0), (512, 1), (2047, 2), (10**6, 4)])
def test_number_of_keys_follows_from_the_length(length: int, keys: int) -> None:
    assert len(prefix_keys("x" * length)) == keys
    assert len(prefix_keys(b"x" * length)) == keys


@pytest.mark.parametrize("shared", [0, 100, 512, 700, 1024, 5000, LONGEST_PREFIX])
def test_keys_are_equal_as_far_as_the_texts_are(shared: int) -> None:
    one = prefix_keys(SHARED[:shared] + "1" * 20_000)
    other = prefix_keys(SHARED[:shared] + "2" * 20_000)
    equal = [a == b for a, b in zip(one, other, strict=True)]
    assert equal == [end <= shared for end in BOUNDARIES]
