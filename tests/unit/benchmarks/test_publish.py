"""Publishing results: files written, results kept, and pages left unchanged."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.figures import Chart, Figure, Line, Panel
from benchmarks.machine import Machine, this_machine
from benchmarks.publish import publish
from benchmarks.results import Measured, Result, Results

NAMES = ["engine", "dask"]
PAGES = {"benchmarks.md": "results", "tuning.md": "curve"}
RATIO = Figure(what="chain", over="stock", ours=[1.0, 2.0], base=[3.0, 3.0], at_most=1.5)
LINE = Line(label="load", x=[0, 1], y=[2, 3])
CURVE = Chart(
    name="curve",
    title="Latency",
    panels=[Panel(title="p50", x_label="wait", y_label="ms", lines=[LINE])],
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "docs").mkdir()
    for page, marker in PAGES.items():
        (tmp_path / "docs" / page).write_text(f"<!-- {marker} -->\n<!-- end of {marker} -->\n")
    return tmp_path


def results(*names: str, machine: Machine | None = None) -> Results:
    result = Result(began="2026-01-02 03:04", load=0.1, measured=Measured.of([RATIO, CURVE]))
    return Results(machine=machine or this_machine(), benchmarks=dict.fromkeys(names, result))


def test_page_gets_table_and_picture(root: Path) -> None:
    publish(results("engine"), root, NAMES)
    page = (root / "docs" / "benchmarks.md").read_text()
    assert "| engine | chain | stock | 0.50 | at most 1.5: met |" in page
    assert "(pictures/engine.svg)" in page


def test_tuning_page_gets_charts(root: Path) -> None:
    publish(results("engine"), root, NAMES)
    assert "![Latency](pictures/curve.svg)" in (root / "docs" / "tuning.md").read_text()
    names = [path.name for path in sorted((root / "docs" / "pictures").iterdir())]
    assert names == ["curve.svg", "engine.svg"]


def test_pictures_are_svg_with_text_and_dark_colours(root: Path) -> None:
    publish(results("engine"), root, NAMES)
    for name, words in (("engine", "compared with stock"), ("curve", "wait")):
        picture = (root / "docs" / "pictures" / f"{name}.svg").read_text()
        ElementTree.fromstring(picture)
        assert words in picture
        assert "prefers-color-scheme: dark" in picture


def test_same_results_give_same_files(root: Path) -> None:
    written = []
    for _ in range(2):
        publish(results("engine"), root, NAMES)
        written.append({path: path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert written[0] == written[1]


def test_raw_figures_can_be_read_back(root: Path) -> None:
    publish(results("engine"), root, NAMES)
    kept = Results.model_validate_json((root / "benchmarks" / "results.json").read_text())
    assert kept == results("engine")


def test_partial_run_keeps_other_results_in_order(root: Path) -> None:
    publish(results("dask"), root, NAMES)
    publish(results("engine"), root, NAMES)
    page = (root / "docs" / "benchmarks.md").read_text()
    assert 0 < page.index("| engine |") < page.index("| dask |")


def test_partial_run_on_another_machine_writes_nothing(root: Path) -> None:
    publish(results("engine", "dask"), root, NAMES)
    before = (root / "docs" / "benchmarks.md").read_text()
    other = this_machine().model_copy(update={"cores": 999})
    assert "run all benchmarks" in publish(results("dask", machine=other), root, NAMES)
    assert (root / "docs" / "benchmarks.md").read_text() == before


def test_full_run_on_another_machine_replaces_results(root: Path) -> None:
    publish(results("engine", "dask"), root, NAMES)
    other = this_machine().model_copy(update={"cores": 999})
    publish(results("engine", "dask", machine=other), root, NAMES)
    assert "999 cores" in (root / "docs" / "benchmarks.md").read_text()
