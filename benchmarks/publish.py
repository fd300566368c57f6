"""Writes results into the documentation: the table, the pictures, and the raw figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import of_chart, of_figures
from benchmarks.results import Results
from benchmarks.tables import fill, markdown

__all__ = ["publish"]


def publish(results: Results, root: Path, order: Sequence[str]) -> str:
    """Write the raw figures and the pictures, and update the pages that show them.

    These are `benchmarks/results.json`, `docs/pictures`, the table in `docs/benchmarks.md` and the
    charts in `docs/tuning.md`. Results of benchmarks that did not run are kept. If they are from
    another machine or other versions, nothing is written.

    Args:
        results: The new results.
        root: Root of the checkout.
        order: Names of all benchmarks, in the order of the table.

    Returns:
        A sentence that says what was written.
    """
    raw, docs = root / "benchmarks" / "results.json", root / "docs"
    whole = results.with_kept(raw, order)
    if whole is None:
        return f"{raw} is from another machine or other versions: run all benchmarks to replace it"
    raw.write_text(whole.model_dump_json(indent=1) + "\n")
    (docs / "pictures").mkdir(exist_ok=True)
    text = [markdown(whole)]
    for name, result in whole.benchmarks.items():
        picture = of_figures(name, result.measured.figures)
        if picture is not None:
            text.append(_picture(docs, name, f"Ratios of the {name} benchmark", picture))
        for chart in result.measured.charts:
            link = _picture(docs, chart.name, chart.title, of_chart(chart))
            _fill(docs / "tuning.md", chart.name, link)
    _fill(docs / "benchmarks.md", "results", "\n\n".join(text))
    return f"Wrote {raw} and updated {docs}."


def _picture(docs: Path, name: str, title: str, svg: str) -> str:
    """Write a picture and return the Markdown that shows it."""
    (docs / "pictures" / f"{name}.svg").write_text(svg)
    return f"![{title}](pictures/{name}.svg)"


def _fill(page: Path, name: str, text: str) -> None:
    page.write_text(fill(page.read_text(), name, text))
