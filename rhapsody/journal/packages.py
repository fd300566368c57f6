"""Where code comes from: an installed package, Python itself, or the user's own files."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from importlib.machinery import PathFinder
from types import ModuleType

__all__ = ["find_source", "installed_package", "package_version"]

PYTHON = "python"
"""The package of Python's own modules."""

OWN = ("asyncflow_ext", "rhapsody")
"""Packages of this distribution: their code may change without effect on results."""

_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


@lru_cache(maxsize=4096)
def installed_package(module: str, file: str | None) -> str | None:
    """Return the package that a module belongs to, or None for the user's own module.

    Args:
        module: The full name of the module.
        file: The file of its code, if there is one.

    Returns:
        The first part of the module's name; "python" for Python's own modules.
    """
    top = module.partition(".")[0]
    if top in OWN:
        return top
    if file is not None and any(f"/{folder}/" in file for folder in _INSTALLED):
        return top
    if top != "__main__" and top in sys.stdlib_module_names:
        return PYTHON
    if file is not None and file.startswith((*(f"{path}/" for path in _STDLIB), "<frozen ")):
        return PYTHON
    return None


@lru_cache(maxsize=1024)
def package_version(package: str) -> str:
    """Return the version of an installed package, "" if it is unknown or does not matter."""
    if package in OWN:
        return ""
    if package == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    names = _distributions().get(package)
    if names:
        return metadata.version(names[0])
    module = sys.modules.get(package)
    return str(getattr(module, "__version__", ""))


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def find_source(module: str) -> tuple[str | None, str | None]:
    """Find the file of a module without importing it.

    Returns:
        Its full name, None if there is no such module; and its file, None for a built-in one.
    """
    loaded = sys.modules.get(module)
    if isinstance(loaded, ModuleType) and module != "__main__":
        return module, getattr(loaded, "__file__", None)
    parent, _, _ = module.rpartition(".")
    folders = None
    if parent:
        name, file = find_source(parent)
        if name is None or installed_package(name, file) is not None:
            return (None, None) if name is None else (module, file)
        if file is not None and not file.endswith("__init__.py"):
            return None, None  # a module, which contains no others
        folders = [os.path.dirname(file)] if file is not None else None
    try:
        # `importlib.util.find_spec` would import the parent.
        find = PathFinder.find_spec if folders is not None else importlib.util.find_spec
        spec = find(module, folders)  # type: ignore[arg-type]
    except (ImportError, AttributeError, ValueError):
        return None, None
    return (None, None) if spec is None else (module, spec.origin)
