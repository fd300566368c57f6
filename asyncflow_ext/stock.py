"""What the engine relies on in AsyncFlow beyond its documented interface, and a check of it."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from radical.asyncflow import WorkflowEngine as StockEngine

__all__ = ["SUPPORTED", "check_stock"]

SUPPORTED = "0.6"

METHODS = {
    "_attach_backend": ["self", "backend"],
    "_emit": ["self", "event_name", "task_id", "backend", "workflow_id", "kwargs"],
    "_register_decorator": ["self", "comp_type", "task_type"],
    "_setup_execution_backend": ["backend", "dry_run"],
    "_setup_signal_handlers": ["self"],
    "_start_async_components": ["self"],
    "shutdown": ["self", "skip_execution_backend"],
    "task_callbacks": ["self", "task", "state", "service_callback"],
}
"""Methods that are called or replaced, with their parameters."""

ATTRIBUTES = (
    "_data_linking",
    "_default_backend_name",
    "_links_explicit_data",
    "_links_implicit_data",
    "_shutdown_event",
    "_telemetry",
    "_workflow_id_ctx",
    "components",
    "dependencies",
    "running",
    "task_states_map",
)
"""Names that the stock constructor sets."""


def check_stock(engine: type = StockEngine) -> None:
    """Refuse an AsyncFlow whose inner names have moved.

    Args:
        engine: The stock engine's class.

    Raises:
        ImportError: Names what moved, and the version that fits.
    """
    moved = []
    for name, expected in METHODS.items():
        method = getattr(engine, name, None)
        if method is None or list(inspect.signature(method).parameters) != expected:
            moved.append(name)
    set_there = inspect.unwrap(engine.__init__).__code__.co_names  # type: ignore[misc]
    moved += [name for name in ATTRIBUTES if name not in set_there]
    if moved:
        raise ImportError(
            f"asyncflow_ext.WorkflowEngine fits radical.asyncflow {SUPPORTED}; in the installed "
            f"{version('radical.asyncflow')} these have moved: {', '.join(moved)}. Install "
            f"'radical.asyncflow=={SUPPORTED}.*', or use the stock engine with extend()"
        )
