"""Where code comes from: its package, its version and its file."""

import os
import sys
from pathlib import Path

import pytest

from rhapsody.journal.packages import find_source, installed_package, package_version


def test_main_program_is_the_users_own() -> None:
    assert installed_package("__main__", os.path.abspath("program.py")) is None


def test_module_of_python_belongs_to_python() -> None:
    assert installed_package("os.path", os.__file__) == "python"


def test_version_of_installed_package_is_found() -> None:
    import numpy

    assert package_version("numpy") == numpy.__version__


def test_version_is_found_by_the_name_of_the_module() -> None:
    assert package_version("yaml") != ""


def test_version_of_rhapsody_does_not_matter() -> None:
    assert package_version("rhapsody") == package_version("asyncflow_ext") == ""


def test_version_of_python_has_two_numbers() -> None:
    assert package_version("python") == ".".join(map(str, sys.version_info[:2]))


def test_unknown_package_has_no_version() -> None:
    assert package_version("no_such_package_here") == ""


def test_source_is_found_without_an_import() -> None:
    sys.modules.pop("this", None)
    name, file = find_source("this")
    assert (name, str(file).endswith("this.py")) == ("this", True)
    assert "this" not in sys.modules


def test_missing_module_has_no_source() -> None:
    assert find_source("no_such_module_here") == (None, None)
    assert find_source("no_such_module_here.inner") == (None, None)


def test_module_of_own_package_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own_unloaded"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "leaf.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_source("own_unloaded.leaf") == ("own_unloaded.leaf", str(folder / "leaf.py"))
    assert find_source("own_unloaded.missing") == (None, None)
    assert find_source("own_unloaded.leaf.name") == (None, None)
