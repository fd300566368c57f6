"""Draws figures and charts as SVG that follows the reader's light or dark colour scheme."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.figures import Chart, Figure, Panel
from benchmarks.tables import number

__all__ = ["of_chart", "of_figures"]

INK, PAPER, GRID = "#1f2329", "#fdfdfd", "#d9dce1"
BLUE = "#0072b2"
DARK = {INK: "#e3e6ea", PAPER: "#15181d", GRID: "#3a4049", BLUE: "#4aa8e0"}
# Distinguishable for most colour-blind readers, on both backgrounds (after Okabe and Ito).
COLOURS = [BLUE, "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56a0d3"]
MET, MISSED, NO_AIM = "#009e73", "#d55e00", BLUE

STYLE: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "rhapsody",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def of_figures(title: str, figures: Sequence[Figure]) -> str | None:
    """Draw ratios with their spreads and aims; return None if there are no ratios."""
    ratios = [figure for figure in figures if figure.is_ratio]
    if not ratios:
        return None
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(9, 1.0 + 0.42 * len(ratios)), layout="constrained")
        axes = drawing.add_subplot()
        axes.set_xscale("log")
        for row, figure in enumerate(ratios):
            _draw_ratio(axes, row, figure)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(ratios)), [_label(figure) for figure in ratios], fontsize=8)
        axes.set_ylim(len(ratios) - 0.5, -0.5)
        _widen(axes, ratios)
        axes.set_title(
            f"{title}: ratio and its range over the rounds; the bar is the aim", loc="left"
        )
        _plain_numbers(axes.xaxis)
        return _svg(drawing)


def of_chart(chart: Chart) -> str:
    """Draw the panels of a chart side by side."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(4.6 * len(chart.panels), 3.6), layout="constrained")
        for number_, panel in enumerate(chart.panels, 1):
            _draw_panel(drawing.add_subplot(1, len(chart.panels), number_), panel)
        drawing.suptitle(chart.title, fontsize=10, x=0.01, ha="left")
        return _svg(drawing)


def _draw_ratio(axes: Any, row: int, figure: Figure) -> None:
    colour = {True: MET, False: MISSED, None: NO_AIM}[figure.met]
    if figure.spread is not None:
        axes.plot(figure.spread, (row, row), color=colour, linewidth=2, alpha=0.5)
    axes.plot(figure.value, row, "<" if figure.base_stopped else "o", color=colour, markersize=6)
    axes.annotate(
        number(figure.value),
        (figure.value, row),
        (0, 6),
        textcoords="offset points",
        fontsize=7,
        ha="center",
    )
    aim = figure.at_most if figure.at_most is not None else figure.at_least
    if aim is not None:
        axes.plot((aim, aim), (row - 0.35, row + 0.35), color=INK, linewidth=1.6)


def _draw_panel(axes: Any, panel: Panel) -> None:
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        axes.plot(line.x, line.y, "o-", label=line.label, color=colour, markersize=3.5)
    ticks = sorted({x for line in panel.lines for x in line.x})
    if panel.log_x:
        axes.set_xscale("symlog", linthresh=min((x for x in ticks if x > 0), default=1.0))
        axes.minorticks_off()
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    if panel.log_y:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.legend()


def _label(figure: Figure) -> str:
    return f"{figure.what}\ncompared with {figure.over}"


def _widen(axes: Any, ratios: Sequence[Figure]) -> None:
    values = [1.0]
    for figure in ratios:
        values += [figure.value, *(figure.spread or ())]
        values += [aim for aim in (figure.at_most, figure.at_least) if aim is not None]
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)


def _plain_numbers(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(drawing: Drawing) -> str:
    """Return the drawing as SVG with a second set of colours for dark mode."""
    output = io.StringIO()
    drawing.savefig(output, format="svg", metadata={"Date": None})
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return output.getvalue().replace("<defs>", f"{style}\n <defs>", 1)
