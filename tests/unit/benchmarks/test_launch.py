"""Running benchmarks: the command line, failures that are named, and nothing left running."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.launch import BENCHMARKS, Benchmark, run
from benchmarks.machine import PACKAGES
from benchmarks.processes import program


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BENCHMARKS)


def test_an_unknown_name_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["engine", "enigne"])
    assert ended.value.code == 2
    assert "no benchmark 'enigne'; there are session, engine" in capsys.readouterr().err


def test_a_benchmark_that_fails_is_named_with_its_error() -> None:
    result = run("absent", Benchmark("a module that is not there", 30))
    assert result.problem is not None
    assert "ended with code 1" in result.problem
    assert "No module named 'benchmarks.absent'" in result.problem


def test_a_benchmark_that_does_not_end_is_stopped() -> None:
    result = run("session", Benchmark("too little time", 0.2))
    assert result.problem == "stopped: it had not ended after 0.2 s"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "Slurm", "no-such-package")
    result = run("session", Benchmark("a runtime that is not there", 30, "Slurm"))
    assert result.problem == "Slurm is not installed: see `make runtimes`"


def test_an_end_takes_all_that_a_program_started(tmp_path: Path) -> None:
    # A grandchild in a session of its own, whose parent has gone.
    orphan = (
        "import time; open('orphan', 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    )
    with program([sys.executable, "-c", parent], cwd=tmp_path) as process:
        assert process.wait(30) == 0
        while not (tmp_path / "orphan").exists() or not (tmp_path / "orphan").read_text():
            psutil.wait_procs([], timeout=0)
        pid = int((tmp_path / "orphan").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_benchmark_gives_figures() -> None:
    result = run("session", BENCHMARKS["session"])
    assert result.problems == []
    assert {figure.unit for figure in result.measured.figures} == {"us"}


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0
    assert "make bench" in done.stdout
