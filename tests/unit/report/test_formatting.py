"""Durations as text."""

import pytest

from rhapsody.report.formatting import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 s"),
        (1e-7, "<1 µs"),
        (2e-6, "2 µs"),
        (0.0005, "500 µs"),
        (0.00123, "1.23 ms"),
        (0.9999, "1 s"),
        (59.9, "59.9 s"),
        (90, "1.5 min"),
        (3600, "1 h"),
        (4_000_000, "1,111 h"),
    ],
)
def test_duration_has_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
