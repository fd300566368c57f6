"""Candidates: ranking, and how sampling parameters pick one."""

import random
from collections import Counter

import pytest

from rhapsody.inference.embedded.candidates import Candidates
from rhapsody.inference.embedded.sampling import Sampling

ABC = Candidates(["a", "b", "c"], [6.0, 3.0, 1.0])


def picks(candidates: Candidates, sampling: Sampling, number: int = 2000) -> Counter[int]:
    rng = random.Random(1)
    return Counter(candidates.pick(sampling, rng, turn) for turn in range(number))


def test_counts_are_ranked_by_frequency() -> None:
    ranked = Candidates.from_counts(Counter({"rare": 1, "often": 5, "some": 2}))
    assert list(ranked.options) == ["often", "some", "rare"]
    assert list(ranked.weights) == [5.0, 2.0, 1.0]


def test_default_sampling_picks_by_weight() -> None:
    found = picks(ABC, Sampling())
    assert found[0] / 2000 == pytest.approx(0.6, abs=0.05)
    assert found[2] / 2000 == pytest.approx(0.1, abs=0.05)


def test_greedy_sampling_picks_the_likeliest() -> None:
    assert picks(ABC, Sampling(temperature=0)) == {0: 2000}


def test_greedy_sampling_varies_between_equal_weights_by_turn() -> None:
    tied = Candidates(["a", "b", "c"], [2.0, 2.0, 1.0])
    assert tied.ties == 2
    assert set(picks(tied, Sampling(temperature=0))) == {0, 1}


def test_greedy_sampling_repeats_for_the_same_turn() -> None:
    tied = Candidates(["a", "b"], [1.0, 1.0])
    greedy = Sampling(temperature=0)
    assert {tied.pick(greedy, random.Random(seed), 7) for seed in range(9)} in ({0}, {1})


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(top_p=0.7), {0, 1}),
        (Sampling(temperature=5.0), {0, 1, 2}),
    ],
    ids=["top_k", "top_p of one", "top_p of two", "high temperature"],
)
def test_sampling_limits_the_candidates(sampling: Sampling, possible: set[int]) -> None:
    assert set(picks(ABC, sampling)) == possible


def test_high_temperature_evens_out_the_weights() -> None:
    hot = picks(ABC, Sampling(temperature=10.0))
    assert hot[2] > picks(ABC, Sampling())[2]


def test_single_candidate_needs_no_random_number() -> None:
    rng = random.Random(3)
    state = rng.getstate()
    assert Candidates(["only"], [1.0]).pick(Sampling(), rng, 0) == 0
    assert rng.getstate() == state
