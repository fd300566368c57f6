"""Child processes: their environment."""

import os

import pytest

from rhapsody.processes import SECRET_VARIABLES, child_environment


def test_the_environment_is_this_processes_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in SECRET_VARIABLES:
        monkeypatch.setenv(variable, "secret")
    expected = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    assert child_environment() == expected


def test_changes_set_and_none_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVED", "1")
    environment = child_environment({"REMOVED": None, "ABSENT": None, "NUMBER": "4"})
    assert "REMOVED" not in environment
    assert environment["NUMBER"] == "4"


def test_a_users_own_key_can_be_handed_on() -> None:
    assert child_environment({"RHAPSODY_API_KEY": "mine"})["RHAPSODY_API_KEY"] == "mine"
