from pathlib import Path

import pytest

from rhapsody import discover_backends, get_backend
from rhapsody.backends import BackendRegistry, ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.errors import ConfigurationError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed third-party package with one working and one broken backend."""
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
    monkeypatch.setattr(BackendRegistry, "_backends", {})
    return BackendRegistry


def test_built_in_backends_are_discovered() -> None:
    assert (
        discover_backends().items()
        >= {
            "concurrent": True,
            "dragon_vllm": True,
            "noop": True,
        }.items()
    )


def test_get_backend_passes_arguments() -> None:
    backend = get_backend("concurrent", "thread", name="mine")
    assert isinstance(backend, ConcurrentExecutionBackend)
    assert backend.name == "mine"


def test_name_of_dragon_in_rhapsody_py_is_an_alias() -> None:
    classes = {BackendRegistry.get_backend_class(name) for name in ("dragon", "dragon_v3")}
    assert len(classes) == 1


def test_entry_point_is_discovered(installed: Path) -> None:
    assert discover_backends()["mybatch"] is True
    assert type(get_backend("mybatch")).__name__ == "MyBatch"


def test_broken_entry_point_is_listed_as_unavailable(installed: Path) -> None:
    assert discover_backends()["broken"] is False


def test_registered_class_takes_precedence(registry: type[BackendRegistry]) -> None:
    class Mine(NoopExecutionBackend):
        pass

    registry.register_backend("noop", Mine)
    assert type(get_backend("noop")) is Mine
    assert registry.list_backends().count("noop") == 1


def test_unknown_name_suggests_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 'concurrent'\? Known: .*noop"):
        get_backend("concurent")


def test_unknown_name_without_similar_name_gets_no_suggestion() -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_backend("zzz")
    assert "did you mean" not in str(caught.value)
