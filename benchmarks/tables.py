"""Formats figures as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from benchmarks.figures import Figure
from benchmarks.results import Result, Results

__all__ = ["fill", "markdown", "number"]

COLUMNS = ("benchmark", "what", "compared with", "ratio", "aim", "measured")


def markdown(results: Results) -> str:
    """Return the conditions of the measurement, and one table of all figures."""
    lines = [f"Measured on {results.machine}.", "", _conditions(results.benchmarks), ""]
    lines += [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    for name, result in results.benchmarks.items():
        lines += [_row(cells) for cells in _cells(name, result)]
    return "\n".join(lines)


def fill(page: str, name: str, text: str) -> str:
    """Replace the text between a page's two markers of a name.

    Raises:
        ValueError: The page has no such markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page must have the lines {begin!r} and {end!r}")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def number(value: float) -> str:
    """Format a number with two or three significant digits."""
    if value == 0:
        return "0"
    if abs(value) < 0.1:
        return f"{float(f'{value:.2g}'):g}"
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _conditions(benchmarks: Mapping[str, Result]) -> str:
    each = [
        f"{name} {result.began} UTC, {result.seconds:.0f} s, load {result.load:g}"
        for name, result in benchmarks.items()
    ]
    return f"Start, duration, and load of the machine before the start: {'; '.join(each)}."


def _cells(name: str, result: Result) -> Iterator[tuple[str, ...]]:
    for figure in result.measured.figures:
        yield (
            name,
            _escaped(figure.what),
            _escaped(figure.over),
            _value(figure),
            _aim(figure),
            _escaped(_measured(figure)),
        )
    for problem in result.problems:
        yield name, _escaped(problem.what), "", "**not measured**", "", _escaped(problem.reason)


def _value(figure: Figure) -> str:
    if figure.is_ratio:
        value = number(figure.value)
        return f"under {value}" if figure.base_stopped else value
    value = _quantity(figure.value, figure.unit)
    return f"+{value}" if figure.difference and figure.value > 0 else value


def _aim(figure: Figure) -> str:
    if figure.met is None:
        return ""
    bound = figure.at_most if figure.at_most is not None else figure.at_least
    assert bound is not None
    words = "at most" if figure.at_most is not None else "at least"
    aim = f"{words} {bound:g}" if figure.is_ratio else f"{words} {bound:g} {figure.unit}"
    return f"{aim}: met" if figure.met else f"**{aim}: missed**"


def _measured(figure: Figure) -> str:
    parts = []
    if figure.base:
        ours, base = (statistics.median(values) for values in (figure.ours, figure.base))
        more = "more than " if figure.base_stopped else ""
        parts.append(f"{_quantity(ours, figure.unit)} against {more}{_quantity(base, figure.unit)}")
    if figure.spread is not None:
        least, greatest = (number(value) for value in figure.spread)
        parts.append(f"{len(figure.ours)} rounds, {least} to {greatest}")
    else:
        parts.append("1 round" if len(figure.ours) == 1 else f"{len(figure.ours)} rounds")
    if figure.note:
        parts.append(figure.note)
    return "; ".join(parts)


def _quantity(value: float, unit: str) -> str:
    if unit == "s" and abs(value) < 1:
        value, unit = value * 1000, "ms"
    return f"{number(value)}{unit}" if unit == "/s" else f"{number(value)} {unit}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
