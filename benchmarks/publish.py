"""Results into the documentation: the page's table, the pictures, and the raw figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import of_chart, of_figures
from benchmarks.results import Results
from benchmarks.tables import fill, markdown

__all__ = ["publish"]


def publish(results: Results, root: Path, order: Sequence[str]) -> str:
    """Write the raw figures, the pictures, and what the pages have of them.

    These are `benchmarks/results.json`, `docs/pictures`, the table of `docs/benchmarks.md` with the
    ratios, and the charts of `docs/tuning.md`. Figures of other benchmarks that are there are kept,
    unless they are of another machine: then nothing is written.

    Args:
        results: What has just been measured.
        root: The checkout.
        order: Names of all benchmarks, as they are to stand in the table.

    Returns:
        What was done, in a sentence.
    """
    raw, docs = root / "benchmarks" / "results.json", root / "docs"
    whole = results.with_kept(raw, order)
    if whole is None:
        return f"{raw} is of another machine or other versions: run all benchmarks to renew it"
    raw.write_text(whole.model_dump_json(indent=1) + "\n")
    (docs / "pictures").mkdir(exist_ok=True)
    text = [markdown(whole)]
    for name, result in whole.benchmarks.items():
        picture = of_figures(name, result.measured.figures)
        if picture is not None:
            text.append(_picture(docs, name, f"Ratios of the benchmark {name}", picture))
        for chart in result.measured.charts:
            link = _picture(docs, chart.name, chart.title, of_chart(chart))
            _fill(docs / "tuning.md", chart.name, link)
    _fill(docs / "benchmarks.md", "results", "\n\n".join(text))
    return f"written: {raw}, and into {docs}"


def _picture(docs: Path, name: str, title: str, svg: str) -> str:
    """Write a picture, and return what shows it in a page."""
    (docs / "pictures" / f"{name}.svg").write_text(svg)
    return f"![{title}](pictures/{name}.svg)"


def _fill(page: Path, name: str, text: str) -> None:
    page.write_text(fill(page.read_text(), name, text))
