"""The machine and the versions that benchmarks name."""

import pytest

from benchmarks.machine import PACKAGES, load, missing, this_machine


def test_machine_names_versions_of_installed_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "Slurm", "no-such-package")
    machine = this_machine()
    assert "AsyncFlow" in machine.versions
    assert "Slurm" not in machine.versions


def test_machine_is_described_in_one_line() -> None:
    machine = this_machine()
    assert f"{machine.cores} cores" in str(machine)
    assert f"AsyncFlow {machine.versions['AsyncFlow']}" in str(machine)
    assert "\n" not in str(machine)


def test_installed_runtime_is_not_missing() -> None:
    assert missing("AsyncFlow") is None
    assert missing(None) is None


def test_load_is_not_negative() -> None:
    assert load() >= 0
