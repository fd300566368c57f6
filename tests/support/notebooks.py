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


def pretend_kernel(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """Make this program look like the kernel of a notebook.

    Returns:
        The outputs of the cell: what each of them has shown, the latest last.
    """
    outputs: list[list[dict[str, str]]] = []

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown = [data]
        outputs.append(shown)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    module = pretend_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    module.display = ModuleType("IPython.display")
    module.display.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    return outputs
