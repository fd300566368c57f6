"""Seeing a workflow run: one HTML page of it, and a live view in the terminal."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rhapsody.api.errors import ConfigurationError
from rhapsody.report.runs import BackendRun, runs_of

__all__ = ["flow_live", "flow_report"]


def flow_report(flow: Any, path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write one HTML page about a workflow engine's tasks so far; it needs no other file.

    It shows what `rhapsody.Session.report` shows. Nothing has to be started before, and it may be
    called at any time, after the engine's shutdown too.

    Args:
        flow: A `WorkflowEngine`, the stock one or Rhapsody's.
        path: The file, replaced where there is one.
        title: Heading of the page; the engine's uid where None.

    Returns:
        The file.

    Raises:
        TypeError: It is no workflow engine.
        ConfigurationError: None of its backends keeps a history, as Rhapsody's backends do.
        OSError: The file cannot be written.
    """
    from rhapsody.report.page import write_page

    runs = _runs(flow)
    return write_page(path, title or str(flow.uid), runs)


def flow_live(flow: Any) -> AbstractContextManager[Any]:
    """Show how a workflow engine's tasks get on, on standard error, while a `with` body runs.

    A table on a terminal, or else a plain line now and then.

    Args:
        flow: A `WorkflowEngine`, the stock one or Rhapsody's.

    Raises:
        TypeError: It is no workflow engine.
        ConfigurationError: None of its backends keeps a history, as Rhapsody's backends do.
    """
    from rhapsody.report.live import LiveView

    return LiveView(_runs(flow))


def _runs(flow: Any) -> list[BackendRun]:
    backends = getattr(flow, "_backends", None)
    if not isinstance(backends, dict):
        raise TypeError(f"a radical.asyncflow WorkflowEngine is wanted, not {type(flow).__name__}")
    runs = runs_of(backends.values())
    if not runs:
        names = ", ".join(f"'{name}'" for name in backends) or "none"
        raise ConfigurationError(
            f"no backend of the engine keeps a history (there are: {names}); Rhapsody's do: "
            "create the engine with one of them"
        )
    return runs
