"""Notebooks: how a kernel is recognised."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.report.notebook import in_notebook
from tests.support.notebooks import pretend_ipython, pretend_kernel


def test_kernel_is_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_kernel(monkeypatch)
    assert in_notebook()


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=None)])
def test_other_shell_is_no_notebook(monkeypatch: pytest.MonkeyPatch, shell: Any) -> None:
    pretend_ipython(monkeypatch, shell)
    assert not in_notebook()


def test_program_without_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert "IPython" not in sys.modules
