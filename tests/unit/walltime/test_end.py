"""The end of the walltime: what each batch system says, and how long it is from now."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.walltime import (
    END_VARIABLE,
    EXIT_RESUBMIT,
    check_walltime,
    find_end,
    remaining_walltime,
)

JOBS = ("SLURM_JOB_END_TIME", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", END_VARIABLE)


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in JOBS:
        monkeypatch.delenv(variable, raising=False)


def stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, output: str, code: int = 0
) -> None:
    """Put a command into PATH that writes an output."""
    (folder / "output").write_text(output)
    command = folder / name
    command.write_text(f"#!/bin/sh\ncat {folder}/output\nexit {code}\n")
    command.chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_no_batch_system_says_nothing() -> None:
    assert find_end() is None
    assert remaining_walltime() is None


def test_option_is_used_if_no_batch_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    end = find_end(100.0)
    assert end is not None
    assert (end.source, round(end.at - time.time())) == ("the option walltime", 100)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "12345")
    assert find_end(100.0) == (12345.0, "SLURM_JOB_END_TIME")


def test_squeue_says_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "squeue", "2026-11-29T16:30:00\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    expected = time.mktime(time.strptime("2026-11-29T16:30:00", "%Y-%m-%dT%H:%M:%S"))
    assert find_end() == (expected, "squeue")


def test_qstat_says_start_and_walltime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"stime": "Sun Nov 29 16:00:00 2026", "Resource_List": {"walltime": "01:30:05"}}
    stand_in(tmp_path, monkeypatch, "qstat", json.dumps({"Jobs": {"7.server": job}}))
    monkeypatch.setenv("PBS_JOBID", "7.server")
    began = time.mktime(time.strptime("2026-11-29T16:00:00", "%Y-%m-%dT%H:%M:%S"))
    assert find_end() == (began + 5405, "qstat")


@pytest.mark.parametrize("output", ["0:10 L\n", "600 second(s)\n"])
def test_bjobs_says_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    stand_in(tmp_path, monkeypatch, "bjobs", output)
    monkeypatch.setenv("LSB_JOBID", "7")
    end = find_end()
    assert end is not None
    assert (round(end.at - time.time()), end.source) == (600, "bjobs")


@pytest.mark.parametrize(("output", "code"), [("NONE\n", 0), ("", 1), ("", 0)])
def test_command_that_does_not_say_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int
) -> None:
    for name, variable in (
        ("squeue", "SLURM_JOB_ID"),
        ("qstat", "PBS_JOBID"),
        ("bjobs", "LSB_JOBID"),
    ):
        stand_in(tmp_path, monkeypatch, name, output, code)
        monkeypatch.setenv(variable, "7")
    assert find_end() is None


def test_remaining_walltime_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 100))
    assert round(remaining_walltime() or 0) == 100
    monkeypatch.setenv(END_VARIABLE, str(time.time() + 50))
    assert round(remaining_walltime() or 0) == 50
    monkeypatch.setenv(END_VARIABLE, "1")
    assert remaining_walltime() == 0.0


def test_exit_code_is_the_one_for_temporary_failures() -> None:
    import os

    assert EXIT_RESUBMIT == os.EX_TEMPFAIL


@pytest.mark.parametrize("walltime", ["1:00:00", True, float("nan"), 10**400])
def test_walltime_must_be_seconds(walltime: Any) -> None:
    with pytest.raises(ConfigurationError, match="'walltime' must be a number of seconds, got"):
        check_walltime(walltime, 60.0)


@pytest.mark.parametrize("margin", [-1, None, "60", float("nan")])
def test_margin_must_be_seconds(margin: Any) -> None:
    with pytest.raises(ConfigurationError, match="'walltime_margin' must be a number of sec"):
        check_walltime(None, margin)


def test_walltime_may_have_passed_or_never_end() -> None:
    check_walltime(-1.5, 0)
    check_walltime(float("inf"), 60)
