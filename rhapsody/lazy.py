"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["look_up"]


def look_up(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Find a name that a package offers, and keep it there: the body of its `__getattr__`.

    Args:
        package: The package's own name.
        homes: The module of each name.
        name: What is asked for.

    Raises:
        AttributeError: The package does not offer it.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(homes[name]), name)
    setattr(sys.modules[package], name, value)
    return value
