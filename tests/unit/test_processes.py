"""Child processes: their environment, and where their sockets are."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rhapsody.processes import SECRET_VARIABLES, child_environment, socket_directory


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


def test_a_socket_directory_is_private_and_temporary() -> None:
    directory = Path(socket_directory("rhapsody-test-"))
    try:
        assert directory.parent == Path(tempfile.gettempdir())
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        directory.rmdir()


def test_a_socket_directory_is_short_where_the_temporary_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    directory = socket_directory("rhapsody-test-")
    try:
        assert len(directory) < 90
        assert not list(deep.iterdir())
    finally:
        shutil.rmtree(directory)
