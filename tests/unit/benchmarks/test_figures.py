"""Figures: the ratio of medians, its spread, and the aim."""

import pytest

from benchmarks.figures import Figure


def figure(**fields: object) -> Figure:
    values: dict[str, object] = {"what": "chain", "ours": [1.0, 2.0, 4.0], "base": [2.0, 2.0, 2.0]}
    return Figure.model_validate(values | fields)


def test_value_is_ratio_of_medians() -> None:
    assert figure(ours=[1.0, 3.0, 100.0]).value == 1.5


def test_difference_is_of_medians() -> None:
    assert figure(difference=True, ours=[5.0, 7.0, 6.0]).value == 4.0


def test_value_without_baseline_is_median() -> None:
    alone = figure(base=[])
    assert alone.value == 2.0
    assert not alone.is_ratio


def test_spread_is_range_over_rounds() -> None:
    assert figure().spread == (0.5, 2.0)


@pytest.mark.parametrize("fields", [{"ours": [1.0], "base": [2.0]}, {"base": [2.0]}])
def test_no_spread_without_pairs(fields: dict[str, object]) -> None:
    assert figure(**fields).spread is None


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        ({}, None),
        ({"at_most": 1.0}, True),
        ({"at_most": 0.9}, False),
        ({"at_least": 1.0}, True),
        ({"at_least": 1.1}, False),
    ],
)
def test_aim_is_met_or_missed(aim: dict[str, float], met: bool | None) -> None:
    assert figure(**aim).met is met
