"""Texts that match regular expressions."""

import random
import re

import pytest

from rhapsody.inference.embedded.structure.patterns import matching_text
from rhapsody.inference.protocol.errors import RequestError

PATTERNS = [
    "^(red|green)$",
    r"^[A-Z]{3}-\d{4}$",
    r"\w+@\w+\.(com|org)",
    "^a*b+c?$",
    "^[^abc]$",
    "^.{2,5}$",
    r"^(ab)\1$",
    "^é[€-₭]$",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_matches(pattern: str) -> None:
    for seed in range(20):
        assert re.search(pattern, matching_text(pattern, random.Random(seed)))


@pytest.mark.parametrize("pattern", ["(", "^a(?=b)c", r"^a\bb$", "^(?!a)[a]$", "a{1000000000}"])
def test_unknown_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match=r"(for|by) the embedded model") as no:
        matching_text(pattern, random.Random(0))
    assert no.value.param == "response_format"
