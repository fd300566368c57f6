"""Candidates for the next token or sentence, and how one is picked."""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.tokens import Token

__all__ = ["Candidates"]


@dataclass(frozen=True)
class Candidates:
    """Candidates with their weights, the likeliest first.

    Args:
        options: Tokens, or indices of sentences.
        weights: Their weights, all above zero, in descending order.
    """

    options: Sequence[Token | int]
    weights: Sequence[float]

    @classmethod
    def from_counts(cls, counts: Counter[Token]) -> Candidates:
        """Rank tokens by how often each was seen."""
        ranked = counts.most_common()
        return cls([token for token, _ in ranked], [float(count) for _, count in ranked])

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the weights."""
        return list(accumulate(self.weights))

    @cached_property
    def ties(self) -> int:
        """The number of candidates that share the highest weight."""
        return sum(1 for weight in self.weights if weight == self.weights[0])

    def pick(self, sampling: Sampling, rng: random.Random, turn: int) -> int:
        """Pick one candidate.

        Args:
            sampling: Temperature, top_p and top_k.
            rng: Random numbers; not used by greedy sampling.
            turn: Decides between candidates of equal weight in greedy sampling.

        Returns:
            The position of the candidate.
        """
        if len(self.weights) == 1:
            return 0
        if sampling.greedy:
            return _spread(turn) % self.ties
        if sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k:
            cumulative = self.cumulative
        else:
            cumulative = self._shaped(sampling)
            if len(cumulative) == 1:
                return _spread(turn) % self.ties
        return bisect(cumulative, rng.random() * cumulative[-1], 0, len(cumulative) - 1)

    def _shaped(self, sampling: Sampling) -> list[float]:
        first = self.weights[0]
        power = 1 / sampling.temperature
        weights = [(weight / first) ** power for weight in self.weights[: sampling.top_k or None]]
        cumulative = list(accumulate(weights))
        if sampling.top_p < 1:
            kept = bisect(cumulative, sampling.top_p * cumulative[-1], 0, len(cumulative) - 1)
            del cumulative[kept + 1 :]
        return cumulative


def _spread(turn: int) -> int:
    # Knuth's multiplicative hash: without it, consecutive turns could repeat one phrase.
    return (turn * 2_654_435_761 & 0xFFFFFFFF) >> 12
