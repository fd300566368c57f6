"""Lazy imports: names of a package that are imported at their first use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["look_up"]


def look_up(package: str, modules: Mapping[str, str], name: str) -> Any:
    """Import a name of a package and store it there; the body of the package's `__getattr__`.

    Args:
        package: The name of the package.
        modules: The module that defines each name.
        name: The name to import.

    Raises:
        AttributeError: The package has no such name.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(modules[name]), name)
    setattr(sys.modules[package], name, value)
    return value
