"""The command line of the benchmarks."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.launch import BENCHMARKS


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BENCHMARKS)


def test_unknown_name_is_refused_with_valid_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["engine", "enigne"])
    assert ended.value.code == 2
    assert "unknown benchmark 'enigne'; choose from session, engine" in capsys.readouterr().err


def test_module_runs_as_program() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0
    assert "make bench" in done.stdout
