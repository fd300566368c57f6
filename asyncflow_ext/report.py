"""Reports of a workflow: an HTML page, and a live view in the terminal."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rhapsody.errors import ConfigurationError
from rhapsody.report.runs import BackendRun, runs_of

__all__ = ["flow_live", "flow_report"]


def flow_report(flow: Any, path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write a self-contained HTML page about the tasks of a workflow engine so far.

    The page shows the same as `rhapsody.Session.report`. It can be written at any time, even after
    the engine's shutdown.

    Args:
        flow: A `WorkflowEngine`, AsyncFlow's or Rhapsody's.
        path: The file to write; an existing file is replaced.
        title: Heading of the page. None: the engine's uid.

    Returns:
        The path of the file.

    Raises:
        TypeError: `flow` is not a workflow engine.
        ConfigurationError: No backend of the engine keeps a history. Rhapsody's backends do.
        OSError: The file cannot be written.
    """
    from rhapsody.report.page import write_page

    runs = _runs(flow)
    return write_page(path, title or str(flow.uid), runs)


def flow_live(flow: Any) -> AbstractContextManager[Any]:
    """Show the progress of a workflow engine on standard error during a `with` block.

    On a terminal it is a table; otherwise plain lines from time to time.

    Args:
        flow: A `WorkflowEngine`, AsyncFlow's or Rhapsody's.

    Raises:
        TypeError: `flow` is not a workflow engine.
        ConfigurationError: No backend of the engine keeps a history. Rhapsody's backends do.
    """
    from rhapsody.report.live import LiveView

    return LiveView(_runs(flow))


def _runs(flow: Any) -> list[BackendRun]:
    backends = getattr(flow, "_backends", None)
    if not isinstance(backends, dict):
        raise TypeError(
            f"'flow' must be a radical.asyncflow WorkflowEngine, got {type(flow).__name__}"
        )
    runs = runs_of(backends.values())
    journal = getattr(getattr(flow, "_machine", None), "journal", None)
    journal = journal or getattr(flow, "_stock_journal", None)
    if journal is not None:
        runs.append(BackendRun(journal.recalled))
    if not runs:
        names = ", ".join(f"'{name}'" for name in backends) or "none"
        raise ConfigurationError(
            f"no backend of the engine keeps a history; its backends are: {names}. Create the "
            "engine with a backend of Rhapsody"
        )
    return runs
