"""Functions that benchmarks run on workers, and the chart of their rates."""

from benchmarks.workers import KINDS, workers_chart


def test_chart_has_a_line_per_kind() -> None:
    rates = {kind: [1.0, 2.0] for kind in KINDS}
    chart = workers_chart("workers", "Workers", (1, 2), rates)
    (panel,) = chart.panels
    assert [line.label for line in panel.lines] == list(KINDS)
    assert all(list(line.x) == [1, 2] for line in panel.lines)
