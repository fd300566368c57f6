"""Backends by name: built in, registered, and offered by installed packages."""

from pathlib import Path

import pytest

from rhapsody import discover_backends, get_backend
from rhapsody.api.errors import ConfigurationError
from rhapsody.backends import BackendRegistry, ConcurrentExecutionBackend, NoopExecutionBackend


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's package, as an installer leaves it, with one good and one broken backend."""
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rhapsody.backends]\nmybatch = third_party:MyBatch\nbroken = third_party_missing:None\n"
    )
    (tmp_path / "third_party.py").write_text(
        "from rhapsody.backends import NoopExecutionBackend\n"
        "class MyBatch(NoopExecutionBackend):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> type[BackendRegistry]:
    monkeypatch.setattr(BackendRegistry, "_registered", {})
    return BackendRegistry


def test_the_built_in_ones_are_known() -> None:
    assert (
        discover_backends().items()
        >= {
            "concurrent": True,
            "dragon_vllm": True,
            "noop": True,
        }.items()
    )


def test_a_backend_is_made_by_name_with_its_own_arguments() -> None:
    backend = get_backend("concurrent", "thread", name="mine")
    assert isinstance(backend, ConcurrentExecutionBackend)
    assert backend.name == "mine"


def test_an_installed_package_can_offer_one(installed: Path) -> None:
    assert discover_backends()["mybatch"] is True
    assert type(get_backend("mybatch")).__name__ == "MyBatch"


def test_one_that_cannot_be_imported_is_listed_as_such(installed: Path) -> None:
    assert discover_backends()["broken"] is False


def test_a_registered_class_goes_before_all_others(registry: type[BackendRegistry]) -> None:
    class Mine(NoopExecutionBackend):
        pass

    registry.register_backend("noop", Mine)
    assert type(get_backend("noop")) is Mine
    assert registry.list_backends().count("noop") == 1


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 'concurrent'\?.*known: .*noop"):
        get_backend("concurent")


def test_a_name_like_no_other_gets_no_hint() -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_backend("zzz")
    assert "did you mean" not in str(caught.value)
