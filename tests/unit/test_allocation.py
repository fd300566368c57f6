"""The checks of the Dragon allocation, without a Dragon runtime."""

import importlib.util

import pytest

from rhapsody.allocation import is_under_dragon, require_dragon
from rhapsody.errors import MissingExtraError


def test_missing_dragon_names_feature_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^a thing needs .*\.\[vllm-dragon\]"):
        require_dragon("a thing", "vllm-dragon")


@pytest.mark.dragon
def test_installed_dragon_is_accepted() -> None:
    require_dragon("a thing", "dragon")


def test_dragon_command_is_recognized_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAGON_MY_PUID", raising=False)
    assert not is_under_dragon()
    monkeypatch.setenv("DRAGON_MY_PUID", "1")
    assert is_under_dragon()
