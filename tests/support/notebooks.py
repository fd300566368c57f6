"""A stand-in for IPython in a kernel, for tests that run in no kernel."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def pretend_ipython(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Any:
    """Make a module `IPython`, whose `get_ipython` returns a shell, the one that is imported."""
    module: Any = ModuleType("IPython")
    module.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    return module


def pretend_kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this program look like the kernel of a notebook."""
    return pretend_ipython(monkeypatch, SimpleNamespace(kernel=object()))
