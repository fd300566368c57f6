"""The report about this machine."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rhapsody.command import doctor
from rhapsody.command.app import app
from rhapsody.command.doctor import Fact


def test_report_names_what_matters() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    for name in ("Python", "radical.asyncflow", "CPUs", "/dev/shm", "open files", "batch system"):
        assert name in done.output
    assert max(map(len, done.output.splitlines())) < 200


def test_json_has_every_fact() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.output)
    assert {fact["section"] for fact in found} >= {"Software", "Machine", "Limits"}
    assert [fact["name"] for fact in found] == [fact.name for fact in doctor.facts()]


def test_problem_is_marked_with_advice_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Fact("Machine", "/dev/shm", "0.1 GiB free", "make it larger")
    monkeypatch.setattr(doctor, "facts", lambda: iter([problem]))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "! /dev/shm" in done.output
    assert "-> make it larger" in done.output
    assert "Problems: 1" in done.output


def test_long_tmpdir_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/tmp/" + "x" * 90
    monkeypatch.setattr("tempfile.gettempdir", lambda: long)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**40))
    monkeypatch.setattr("os.path.isdir", lambda path: False)
    [fact] = [fact for fact in doctor.facts() if fact.name == "TMPDIR"]
    assert "too long for Unix sockets" in str(fact.advice)


def test_job_of_batch_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    [fact] = [fact for fact in doctor.facts() if fact.name == "batch system"]
    assert "Slurm job 4711" in fact.value
