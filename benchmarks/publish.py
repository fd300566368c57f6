"""Results into the documentation: the page's table, the pictures, and the raw figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import of_chart, of_figures
from benchmarks.results import Results
from benchmarks.tables import fill, markdown

__all__ = ["publish"]


def publish(results: Results, root: Path, order: Sequence[str]) -> str:
    """Write `benchmarks/results.json`, the table of `docs/benchmarks.md`, and `docs/pictures`.

    Figures of other benchmarks that are there are kept, unless they are of another machine: then
    nothing is written.

    Args:
        results: What has just been measured.
        root: The checkout.
        order: Names of all benchmarks, as they are to stand in the table.

    Returns:
        What was done, in a sentence.
    """
    raw, page = root / "benchmarks" / "results.json", root / "docs" / "benchmarks.md"
    whole = results.with_kept(raw, order)
    if whole is None:
        return f"{page} is of another machine or other versions: run all benchmarks to renew it"
    pictures = _pictures(whole)
    folder = root / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture)
    links = [
        f"![Ratios of the benchmark {name}](pictures/{name}.svg)"
        for name in whole.benchmarks
        if name in pictures
    ]
    raw.write_text(whole.model_dump_json(indent=1) + "\n")
    page.write_text(fill(page.read_text(), "results", "\n\n".join([markdown(whole), *links])))
    return f"written: {page}, {raw} and {len(pictures)} pictures in {folder}"


def _pictures(results: Results) -> dict[str, str]:
    """Return the SVG of each benchmark's ratios, and of the charts, which other pages show."""
    pictures = {}
    for name, result in results.benchmarks.items():
        picture = of_figures(name, result.measured.figures)
        if picture is not None:
            pictures[name] = picture
        pictures |= {chart.name: of_chart(chart) for chart in result.measured.charts}
    return pictures
