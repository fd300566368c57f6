"""The line that shows how far a run over a file is."""

from collections import Counter

import pytest

from rhapsody.command.progress import progress_line


@pytest.mark.parametrize(
    ("counts", "total", "seconds", "line"),
    [
        ({}, None, 0, "0:00:00  0 lines, 0 errors"),
        ({"done": 8, "errors": 2}, 30, 4, "0:00:04  10 of 30 lines, 2 errors, 2.5/s, 0:00:08 left"),
        ({"done": 5000}, None, 2, "0:00:02  5,000 lines, 0 errors, 2,500/s"),
        (
            {"before": 1000, "done": 100},
            1300,
            5,
            "0:00:05  1,100 of 1,300 lines, 0 errors, 20/s, 0:00:10 left",
        ),
    ],
)
def test_line_has_counts_rate_and_time_left(
    counts: dict[str, int], total: int | None, seconds: float, line: str
) -> None:
    assert progress_line(Counter(counts), total, seconds) == line
