"""What program and model servers agree on: the parent pipe and the key."""

import os

import pytest

from rhapsody.inference.protocol.process import (
    KEY_HEADER,
    KEY_VARIABLE,
    PARENT_VARIABLE,
    missing_key,
    open_parent_pipe,
)
from rhapsody.processes import SECRET_VARIABLES


def test_server_without_parent_pipe_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    assert open_parent_pipe() is None


def test_parent_pipe_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    monkeypatch.setenv(PARENT_VARIABLE, str(read_end))
    try:
        assert open_parent_pipe() == read_end
        assert PARENT_VARIABLE not in os.environ
        assert not os.get_inheritable(read_end)
        os.close(write_end)
        assert os.read(read_end, 1) == b""
    finally:
        os.close(read_end)


@pytest.mark.parametrize("value", ["x", "", "999999"])
def test_invalid_parent_pipe_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, value)
    with pytest.raises(ValueError, match=f"{PARENT_VARIABLE} must be the number of the open"):
        open_parent_pipe()


def test_key_is_never_passed_to_tasks() -> None:
    assert KEY_VARIABLE in SECRET_VARIABLES


def test_missing_key_names_the_header() -> None:
    error = missing_key()
    assert (error.code, error.param) == (401, KEY_HEADER)
    assert KEY_HEADER in error.message
