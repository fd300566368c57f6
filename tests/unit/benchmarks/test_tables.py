"""The table of benchmarks: every figure, every aim and every failure is there to be read."""

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


def test_a_ratio_has_what_it_was_taken_from() -> None:
    found = Figure(what="chain", over="stock", ours=[0.5, 0.7, 0.6], base=[2, 2, 2], at_most=0.5)
    assert last_row(table_of(found)) == [
        "engine",
        "chain",
        "stock",
        "0.30",
        "at most 0.5: met",
        "600 ms against 2.00 s; 3 times, 0.25 to 0.35",
    ]


def test_a_missed_aim_stands_out() -> None:
    found = Figure(what="rate", over="pool", ours=[10], base=[5], unit="/s", at_least=3)
    assert "**at least 3: missed**" in last_row(table_of(found))


def test_a_base_that_was_stopped_gives_a_bound() -> None:
    found = Figure(what="tasks", over="peer", ours=[1], base=[60], base_stopped=True, note="9 done")
    cells = last_row(table_of(found))
    assert cells[3] == "under 0.017"
    assert cells[5] == "1.00 s against more than 60.0 s; once; 9 done"


def test_a_difference_has_its_unit_and_sign() -> None:
    found = Figure(
        what="idle", over="bare", ours=[3], base=[2], unit="%", difference=True, at_most=2
    )
    assert last_row(table_of(found))[3:5] == ["+1.00 %", "at most 2 %: met"]


def test_what_could_not_be_measured_is_named_with_the_reason() -> None:
    table = table_of(Problem(what="dask backend", reason="a | b"), problem="it ended")
    assert "| engine | all of it |  | **not measured** |  | it ended |" in table
    assert "| engine | dask backend |  | **not measured** |  | a \\| b |" in table


def test_it_says_when_and_where_it_was_taken() -> None:
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
def test_numbers_have_the_digits_that_they_deserve(value: float, written: str) -> None:
    assert number(value) == written


def test_text_goes_between_the_markers_and_nowhere_else() -> None:
    page = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"
    assert fill(page, "results", "new") == page.replace("old", "new")


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="end of results"):
        fill("<!-- results -->", "results", "new")
