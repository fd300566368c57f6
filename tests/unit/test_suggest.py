"""Error messages suggest the nearest known name."""

import pytest

from rhapsody.suggest import did_you_mean, unknown_name

KNOWN = {"timeout", "temperature", "retries"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("time_out", "did you mean 'timeout'?"), ("colour", ""), ("", "")],
)
def test_nearest_known_name_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, KNOWN) == hint


def test_cutoff_limits_suggestions() -> None:
    assert did_you_mean("retry", KNOWN, cutoff=0.5) == "did you mean 'retries'?"
    assert did_you_mean("retry", KNOWN, cutoff=0.8) == ""


def test_message_suggests_a_name_and_lists_all() -> None:
    assert unknown_name("option", "retrys", KNOWN) == (
        "unknown option 'retrys'; did you mean 'retries'? Known: retries, temperature, timeout"
    )


def test_message_names_the_place() -> None:
    assert unknown_name("key", "dtyp", {"dtype"}, "section 'llm'") == (
        "unknown key 'dtyp' in section 'llm'; did you mean 'dtype'? Known: dtype"
    )


def test_message_without_a_near_name_lists_all() -> None:
    assert unknown_name("option", "colour", KNOWN) == (
        "unknown option 'colour'; known: retries, temperature, timeout"
    )
