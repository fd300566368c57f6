"""Errors for programs that do not run in a Dragon runtime."""

import importlib.util

import pytest

from rhapsody.backends.dragon.runtime import require_runtime
from rhapsody.errors import BackendError, MissingExtraError


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="dragon"):
        require_runtime("DragonExecutionBackend", "dragon")


def test_missing_runtime_says_how_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("DRAGON_MY_PUID", raising=False)
    with pytest.raises(BackendError, match=r"launch it with `dragon script\.py`"):
        require_runtime("DragonExecutionBackend", "dragon")


def test_program_in_a_runtime_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("DRAGON_MY_PUID", "4294967296")
    require_runtime("DragonExecutionBackend", "dragon")
