"""Running benchmarks: failures are reported, and time limits hold."""

import pytest

from benchmarks.launch import BENCHMARKS, Benchmark, run
from benchmarks.machine import PACKAGES


def test_failed_benchmark_reports_error() -> None:
    result = run("absent", Benchmark("a missing module", 30))
    assert result.problem is not None
    assert "exited with code 1" in result.problem
    assert "No module named 'benchmarks.absent'" in result.problem


def test_benchmark_is_stopped_at_time_limit() -> None:
    result = run("session", Benchmark("too little time", 0.2))
    assert result.problem == "stopped at the time limit of 0.2 s"


def test_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "Slurm", "no-such-package")
    result = run("session", Benchmark("a missing runtime", 30, "Slurm"))
    assert result.problem == "Slurm is not installed; `make runtimes` installs it"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_session_benchmark_returns_figures() -> None:
    result = run("session", BENCHMARKS["session"])
    assert result.problems == []
    assert {figure.unit for figure in result.measured.figures} == {"us"}
