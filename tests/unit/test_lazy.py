"""Names that a package imports at their first use."""

import sys
from types import ModuleType

import pytest

from rhapsody.lazy import look_up

MODULES = {"dumps": "json", "absent": "json", "lost": "rhapsody.no_such_module"}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("lazy_package")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_name_is_imported_and_stored_in_the_package(package: ModuleType) -> None:
    import json

    assert look_up("lazy_package", MODULES, "dumps") is json.dumps
    assert vars(package)["dumps"] is json.dumps


@pytest.mark.usefixtures("package")
def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lazy_package' has no attribute 'other'"):
        look_up("lazy_package", MODULES, "other")


def test_failed_import_stores_nothing(package: ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        look_up("lazy_package", MODULES, "lost")
    with pytest.raises(AttributeError, match="absent"):
        look_up("lazy_package", MODULES, "absent")
    assert not {"lost", "absent"} & vars(package).keys()
