"""Notebooks: whether this program is the kernel of one, and an output of a cell that changes."""

from __future__ import annotations

import sys

__all__ = ["Output", "in_notebook"]


def in_notebook() -> bool:
    """Return whether this program is an IPython kernel, which runs the cells of a notebook.

    A kernel has imported IPython, so it is not imported here. IPython in a terminal is not a
    kernel.
    """
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return getattr(shell, "kernel", None) is not None


class Output:
    """An output of the running cell, which an update replaces. For kernels only; thread-safe.

    Args:
        html: What a notebook shows.
        text: The same for programs that show no HTML.
    """

    def __init__(self, html: str, text: str) -> None:
        from IPython.display import display

        data = {"text/html": html, "text/plain": text}
        self._handle = display(data, raw=True, display_id=True)

    def update(self, html: str, text: str) -> None:
        """Replace the output."""
        self._handle.update({"text/html": html, "text/plain": text}, raw=True)
