"""The table of benchmarks: figures, aims and failures."""

import pytest

from benchmarks.figures import Figure, Problem
from benchmarks.machine import this_machine
from benchmarks.results import Measured, Result, Results
from benchmarks.tables import fill, markdown, number


def table_of(*found: Figure | Problem, problem: str | None = None) -> str:
    result = Result(
        began="2026-01-02 03:04", load=0.5, seconds=7, measured=Measured.of(found), problem=problem
    )
    return markdown(Results(machine=this_machine(), benchmarks={"engine": result}))


def last_row(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split(" | ")]


def test_ratio_row_has_both_medians() -> None:
    found = Figure(what="chain", over="stock", ours=[0.5, 0.7, 0.6], base=[2, 2, 2], at_most=0.5)
    assert last_row(table_of(found)) == [
        "engine",
        "chain",
        "stock",
        "0.30",
        "at most 0.5: met",
        "600 ms against 2.00 s; 3 rounds, 0.25 to 0.35",
    ]


def test_missed_aim_is_bold() -> None:
    found = Figure(what="rate", over="pool", ours=[10], base=[5], unit="/s", at_least=3)
    assert "**at least 3: missed**" in last_row(table_of(found))


def test_stopped_baseline_gives_bound() -> None:
    found = Figure(what="tasks", over="peer", ours=[1], base=[60], base_stopped=True, note="9 done")
    cells = last_row(table_of(found))
    assert cells[3] == "under 0.017"
    assert cells[5] == "1.00 s against more than 60.0 s; 1 round; 9 done"


def test_difference_has_unit_and_sign() -> None:
    found = Figure(
        what="idle", over="bare", ours=[3], base=[2], unit="%", difference=True, at_most=2
    )
    assert last_row(table_of(found))[3:5] == ["+1.00 %", "at most 2 %: met"]


def test_problem_row_has_reason() -> None:
    table = table_of(Problem(what="dask backend", reason="a | b"), problem="it ended")
    assert "| engine | the whole benchmark |  | **not measured** |  | it ended |" in table
    assert "| engine | dask backend |  | **not measured** |  | a \\| b |" in table


def test_table_names_machine_versions_and_time() -> None:
    table = table_of()
    machine = this_machine()
    assert f"{machine.cores} cores" in table
    assert f"Python {machine.python}" in table
    assert f"AsyncFlow {machine.versions['AsyncFlow']}" in table
    assert "engine 2026-01-02 03:04 UTC, 7 s, load 0.5" in table


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (0.00421, "0.0042"), (0.5, "0.50"), (12.34, "12.3"), (24831.0, "24,831")],
)
def test_number_has_two_or_three_significant_digits(value: float, written: str) -> None:
    assert number(value) == written


def test_fill_replaces_only_text_between_markers() -> None:
    page = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"
    assert fill(page, "results", "new") == page.replace("old", "new")


def test_fill_refuses_page_without_markers() -> None:
    with pytest.raises(ValueError, match="end of results"):
        fill("<!-- results -->", "results", "new")
