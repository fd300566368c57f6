"""The recorder: turns events into counts, durations and spans."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody.telemetry.counters import TaskCounters, TrackedTask
from rhapsody.telemetry.events import BaseEvent
from rhapsody.telemetry.spans import Tracer

__all__ = ["Recorder", "SpanEnricher"]

logger = logging.getLogger(__name__)

SpanEnricher = Callable[[BaseEvent], Mapping[str, Any]]
"""Returns attributes for the span of an event's task."""


class Recorder:
    """Keeps the counters and the latest spans. Not thread-safe.

    Args:
        max_records: The maximum number of finished spans to keep, and of open tasks to track.
        on_span: Called with each span that has ended.
    """

    def __init__(self, max_records: int, on_span: Callable[[Any], None]) -> None:
        self.counters = TaskCounters(max_open=max_records)
        self.spans: deque[Any] = deque(maxlen=max_records)
        self.enrichers: list[SpanEnricher] = []
        self.tracer: Tracer | None = None
        self.root: Any = None
        self.recorded = 0
        self._on_span = on_span
        self._failures_logged: set[object] = set()

    def start(self, tracer: Tracer, session_id: str) -> None:
        """Start the session's span, the root of all others.

        Args:
            tracer: Creates the spans, and calls `keep` with each one that has ended.
            session_id: An attribute of the session's span.
        """
        self.tracer = tracer
        self.root = self.tracer.start("session", None, {"session_id": session_id}, time.time_ns())

    def close(self) -> None:
        """End the spans of unfinished tasks, then the session's span."""
        for task in self.counters.take_unfinished():
            self._add_span(task, "unfinished", time.time(), None)
        if self.tracer is not None:
            self.tracer.end(self.root, time.time_ns())

    def keep(self, span: Any) -> None:
        """Keep a span that has ended."""
        self.spans.append(span)
        self._on_span(span)

    def record(self, event: BaseEvent, scope_span: Any) -> Any:
        """Record an event; an error is logged.

        Args:
            event: The event.
            scope_span: The span in which it was emitted, or None.

        Returns:
            The span of its task, if the event ended the task; else None.
        """
        self.recorded += 1
        try:
            task = self.counters.observe(event, scope_span)
            if task is None:
                return None
            self._enrich(task, event)
            if task.outcome is not None:
                return self._end(task, event)
        except Exception:
            self._log_once(type(event), "telemetry could not record a %s", event.event_type)
        return None

    def _enrich(self, task: TrackedTask, event: BaseEvent) -> None:
        for enricher in self.enrichers:
            try:
                task.attributes.update(enricher(event))
            except Exception:
                self._log_once(enricher, "span enricher %r raised", enricher)

    def _end(self, task: TrackedTask, event: BaseEvent) -> Any:
        if self.tracer is not None and task.outcome != "canceled":
            seconds = getattr(event, "duration_seconds", 0.0)
            self.tracer.record_duration(task.backend, task.task_type, seconds)
        error = getattr(event, "error_type", None)
        return self._add_span(task, task.outcome or "", event.event_time, error)

    def _add_span(self, task: TrackedTask, status: str, ended: float, error: str | None) -> Any:
        if self.tracer is None:
            return None
        attributes = {
            **{name: _plain(value) for name, value in task.attributes.items()},
            "task_id": task.task_id,
            "backend": task.backend,
            "executable": task.executable,
            "task_type": task.task_type,
            "status": status,
            "wait_seconds": max(0.0, task.begun_at - task.first_seen),
        }
        if error is not None:
            attributes["error_type"] = error
        parent = task.parent or self.root
        span = self.tracer.start("task", parent, attributes, int(task.begun_at * 1e9))
        end_time = int(max(ended, task.begun_at) * 1e9)
        self.tracer.end(span, end_time, error, succeeded=status == "completed")
        return span

    def _log_once(self, key: object, message: str, *args: object) -> None:
        if key not in self._failures_logged:
            self._failures_logged.add(key)
            logger.exception(message + "; further failures are not logged", *args)


def _plain(value: Any) -> Any:
    """Return a value as a span's attribute: scalars unchanged, all others as text."""
    return value if isinstance(value, (str, bool, int, float)) else str(value)
