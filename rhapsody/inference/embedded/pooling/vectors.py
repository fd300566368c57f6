"""Vectors of texts from hashed n-grams of characters, and what follows from their cosine.

This is no model: texts that share words are near each other, and nothing else is.
"""

from __future__ import annotations

import math
import sys
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

from rhapsody.inference.embedded.tokens import is_common, iterate_tokens

__all__ = ["DIMENSIONS", "bytes_of", "cosine", "embed", "floats_of", "probabilities"]

DIMENSIONS = 256
_SIZE = 3
"""Characters of an n-gram; the whole word counts as one, too."""
_COMMON_WEIGHT = 0.1
"""Words such as "the" say little about a text."""
_SHARPNESS = 10.0
"""Factor of the cosine in the exponent of a label's probability."""


def embed(text: str) -> list[float]:
    """Return the vector of a text, of length 1. Equal texts have equal vectors.

    Args:
        text: A text that is not empty.
    """
    vector = [0.0] * DIMENSIONS
    words = [token.strip().casefold() for token in iterate_tokens(text)]
    for word in [word for word in words if word[:1].isalnum()] or [text.casefold()]:
        weight = _COMMON_WEIGHT if is_common(word) else 1.0
        for index, sign in _features(word):
            vector[index] += sign * weight
    length = math.sqrt(math.fsum(number * number for number in vector))
    if not length:  # the n-grams cancel each other
        vector[zlib.crc32(text.encode("utf-8", "surrogatepass")) % DIMENSIONS] = length = 1.0
    return [number / length for number in vector]


@lru_cache(maxsize=20_000)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    padded = f"<{word}>"
    grams = [padded[at : at + _SIZE] for at in range(max(1, len(padded) - _SIZE + 1))]
    features = []
    for gram in (padded, *grams):
        hashed = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
        features.append((hashed % DIMENSIONS, 1.0 if hashed & 0x8000_0000 else -1.0))
    return tuple(features)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of two vectors of length 1, between -1 and 1."""
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(first, second, strict=True))))


def probabilities(text: str, labels: Sequence[str]) -> list[float]:
    """Return the probability of each label: the higher, the nearer its name is to the text.

    Args:
        text: A text that is not empty.
        labels: Names of labels.
    """
    vector = embed(text)
    weights = [math.exp(_SHARPNESS * cosine(vector, embed(label))) for label in labels]
    return [weight / math.fsum(weights) for weight in weights]


def bytes_of(numbers: Sequence[float]) -> bytes:
    """Return numbers as float32 in little-endian order."""
    values = array("f", numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def floats_of(data: bytes) -> list[float]:
    """Return the numbers in bytes that `bytes_of` made."""
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
