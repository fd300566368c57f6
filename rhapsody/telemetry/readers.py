"""Readers and subscribers as objects of their own, as in `rhapsody-py`, for code that gets one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rhapsody.telemetry.events import BaseEvent

if TYPE_CHECKING:
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["TelemetryReader", "TelemetrySubscriber"]


class TelemetryReader:
    """Reads the spans and metrics of a manager.

    Args:
        manager: The manager.
    """

    def __init__(self, manager: TelemetryManager) -> None:
        self._manager = manager

    def read_metrics(self) -> Any:
        """Return the metrics; see `TelemetryManager.read_metrics`."""
        return self._manager.read_metrics()

    def read_traces(
        self, session_id: str | None = None, task_id: str | None = None
    ) -> tuple[Any, ...]:
        """Return the spans that ended last.

        Args:
            session_id: Only spans with this attribute `session_id`.
            task_id: Only spans with this attribute `task_id`.
        """
        wanted = {"session_id": session_id, "task_id": task_id}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        spans = self._manager.read_traces()
        return tuple(span for span in spans if wanted.items() <= dict(span.attributes).items())


class TelemetrySubscriber:
    """Subscribes callbacks to the events of a manager.

    Args:
        manager: The manager.
    """

    def __init__(self, manager: TelemetryManager) -> None:
        self._manager = manager

    def subscribe(self, callback: Callable[[BaseEvent], Any]) -> None:
        """Call a function with every event; see `TelemetryManager.subscribe`."""
        self._manager.subscribe(callback)
