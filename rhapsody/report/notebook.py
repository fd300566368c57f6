"""Notebooks: whether this program is the kernel of one."""

from __future__ import annotations

import sys

__all__ = ["in_notebook"]


def in_notebook() -> bool:
    """Return whether this program is an IPython kernel, which runs the cells of a notebook.

    A kernel has imported IPython, so it is not imported here. IPython in a terminal is no kernel.
    """
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return getattr(shell, "kernel", None) is not None
