"""Results of benchmarks: sorting, and merging with a file."""

from pathlib import Path

from benchmarks.figures import Chart, Figure, Problem
from benchmarks.machine import Machine, this_machine
from benchmarks.results import Measured, Result, Results

FIGURE = Figure(what="chain", ours=[1.0])


def results(*names: str, machine: Machine | None = None) -> Results:
    result = Result(began="2026-01-02 03:04", load=0.1, measured=Measured.of([FIGURE]))
    return Results(machine=machine or this_machine(), benchmarks=dict.fromkeys(names, result))


def test_measured_sorts_by_type() -> None:
    chart = Chart(name="curve", title="Curve", panels=[])
    problem = Problem(what="dask", reason="not installed")
    measured = Measured.of([problem, FIGURE, chart])
    assert measured == Measured(figures=[FIGURE], charts=[chart], problems=[problem])


def test_failed_benchmark_lists_its_problem_first() -> None:
    measured = Measured(problems=[Problem(what="part", reason="later")])
    result = Result(began="", load=0.0, measured=measured, problem="it failed")
    assert [problem.reason for problem in result.problems] == ["it failed", "later"]


def test_missing_file_adds_nothing(tmp_path: Path) -> None:
    new = results("engine")
    assert new.with_kept(tmp_path / "absent.json", ["engine"]) == new


def test_results_of_removed_benchmarks_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results("engine", "removed").model_dump_json())
    merged = results("dask").with_kept(path, ["dask", "engine"])
    assert merged is not None
    assert list(merged.benchmarks) == ["dask", "engine"]


def test_results_from_another_machine_are_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results("engine").model_dump_json())
    other = this_machine().model_copy(update={"cores": 999})
    assert results("dask", machine=other).with_kept(path, ["dask", "engine"]) is None
