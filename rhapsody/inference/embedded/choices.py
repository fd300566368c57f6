"""Choices: what may come next, and how one of them is taken."""

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


@dataclass(frozen=True)
class Choices:
    """What may come next, the likeliest first.

    Args:
        options: The tokens (or indices of sentences) to choose from.
        weights: Their weights, none of them zero, in descending order.
    """

    options: Sequence[Token | int]
    weights: Sequence[float]

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the weights."""
        return list(accumulate(self.weights))

    @cached_property
    def ties(self) -> int:
        """How many share the first place."""
        return sum(1 for weight in self.weights if weight == self.weights[0])

    def pick(self, sampling: Sampling, rng: random.Random, turn: int) -> int:
        """Choose one.

        Args:
            sampling: Temperature, top_p and top_k.
            rng: Source of chance; not asked when greedy.
            turn: Decides between equals without chance.

        Returns:
            The position of the chosen one.
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
    # Knuth's multiplicative hash: consecutive turns in one phrase do not fall into its rhythm.
    return (turn * 2_654_435_761 & 0xFFFFFFFF) >> 12


def choices_from(counts: Counter[Token]) -> Choices:
    """Rank what was counted.

    Args:
        counts: How often each token was seen.

    Returns:
        The tokens with their counts as weights.
    """
    ranked = counts.most_common()
    return Choices([token for token, _ in ranked], [float(count) for _, count in ranked])
