"""Results into the documentation: the page's table, the pictures, and the raw figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    pictures = root / "docs" / "pictures"
    pictures.mkdir(exist_ok=True)
    links = []
    for name, title, picture in _pictures(whole):
        (pictures / f"{name}.svg").write_text(picture)
        links.append(f"![{title}](pictures/{name}.svg)")
    raw.write_text(whole.model_dump_json(indent=1) + "\n")
    page.write_text(fill(page.read_text(), "results", "\n\n".join([markdown(whole), *links])))
    return f"written: {page}, {raw} and {len(links)} pictures in {pictures}"


def _pictures(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield name, title and SVG of each."""
    for name, result in results.benchmarks.items():
        picture = of_figures(name, result.measured.figures)
        if picture is not None:
            yield name, f"Ratios of the benchmark {name}", picture
        for chart in result.measured.charts:
            yield chart.name, chart.title, of_chart(chart)
