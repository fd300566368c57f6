"""Reports of a workflow: an HTML page, and a live view in the terminal."""

from __future__ import annotations

import os
import weakref
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow_ext.graph import ComponentGraph, stock_graph
from rhapsody.errors import ConfigurationError
from rhapsody.report.runs import BackendRun, runs_of

if TYPE_CHECKING:
    from rhapsody.report.live_page import LivePage
    from rhapsody.report.page import PageSource

__all__ = ["flow_live", "flow_page", "flow_report", "page_source"]


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

    return write_page(path, page_source(flow, title))


def flow_page(flow: Any, port: int = 0, title: str | None = None) -> LivePage:
    """Serve the report of a workflow engine as a live page.

    The address is one of this machine, with a secret in it. The page works also while the program
    is busy, and costs nothing while nobody looks at it. The shutdown of Rhapsody's engine closes
    it; for AsyncFlow's engine call its `close()`.

    Args:
        flow: A `WorkflowEngine`, AsyncFlow's or Rhapsody's.
        port: The port at 127.0.0.1. 0: a free one.
        title: Heading of the page. None: the engine's uid.

    Returns:
        The page: print its `url`. `close()` closes it.

    Raises:
        TypeError: `flow` is not a workflow engine.
        ConfigurationError: No backend of the engine keeps a history. Rhapsody's backends do.
        ResourceError: The port is in use.
    """
    from rhapsody.report.live_page import serve_page

    return serve_page(flow, page_source(flow, title), port)


def page_source(flow: Any, title: str | None = None) -> PageSource:
    """Return what the pages of an engine show; it refers to the engine weakly.

    Raises:
        TypeError: `flow` is not a workflow engine.
        ConfigurationError: No backend of the engine keeps a history.
    """
    from rhapsody.report.graph import Graph, graph_of
    from rhapsody.report.page import PageSource

    runs = _runs(flow)
    engine = weakref.ref(flow)

    def graph() -> Graph:
        flow: Any = engine()
        own = getattr(flow, "_graph", None)
        if isinstance(own, ComponentGraph):
            return own.graph(list(flow._components.active.values()))
        found = Graph(()) if flow is None else stock_graph(flow)
        return found if found.nodes else graph_of(runs)  # a shutdown empties the register

    def resources() -> list[dict[str, Any]]:
        telemetry = getattr(engine(), "_telemetry", None)
        latest = getattr(telemetry, "latest_resources", None)
        return latest() if latest is not None else []

    return PageSource(title or str(flow.uid), lambda: runs, graph, resources)


def flow_live(flow: Any) -> AbstractContextManager[Any]:
    """Show the progress of a workflow engine during a `with` block.

    It is a table in a notebook, and on standard error if that is a terminal; otherwise plain lines
    on standard error from time to time.

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
