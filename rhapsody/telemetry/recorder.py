"""The recorder: turns events into counts, spans and durations."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.telemetry.events import BaseEvent
from rhapsody.telemetry.ledger import TaskLedger, TaskRecord
from rhapsody.telemetry.spans import SpanTracer, Tracer

if TYPE_CHECKING:
    from rhapsody.telemetry.otel import OtelTracer

__all__ = ["Recorder", "SpanEnricher"]

logger = logging.getLogger(__name__)

SpanEnricher = Callable[[BaseEvent], Mapping[str, Any]]
"""Returns attributes for the span of the task that an event is about."""


class Recorder:
    """Keeps the ledger and the latest spans; the caller sees to it that one thread is in it.

    Args:
        max_records: How many finished spans are kept, and how many open tasks remembered.
        on_span: Called with each span that has ended, once it is kept.
    """

    def __init__(self, max_records: int, on_span: Callable[[Any], None]) -> None:
        self.ledger = TaskLedger(max_open=max_records)
        self.spans: deque[Any] = deque(maxlen=max_records)
        self.enrichers: list[SpanEnricher] = []
        self.tracer: Tracer | None = None
        self.root: Any = None
        self.recorded = 0
        self._otel: OtelTracer | None = None
        self._on_span = on_span
        self._failures_logged: set[object] = set()

    def open(self, otel: OtelTracer | None, session_id: str) -> None:
        """Open the session's span, the root of all others.

        Args:
            otel: Makes the spans; None for plain ones.
            session_id: An attribute of the root.
        """
        self._otel = otel
        self.tracer = otel or SpanTracer(self.keep)
        self.root = self.tracer.start("session", None, {"session_id": session_id}, time.time_ns())

    def close(self) -> None:
        """End the spans of tasks that did not end, then the session's."""
        for task in self.ledger.close_open():
            self._add_span(task, "unfinished", time.time(), None)
        if self.tracer is not None:
            self.tracer.end(self.root, time.time_ns())

    def keep(self, span: Any) -> None:
        """Keep a span that has ended."""
        self.spans.append(span)
        self._on_span(span)

    def record(self, event: BaseEvent, scope_span: Any) -> None:
        """Take in an event; what goes wrong is logged.

        Args:
            event: The event.
            scope_span: The span that was open where it was emitted, or None.
        """
        self.recorded += 1
        try:
            task = self.ledger.observe(event, scope_span)
            if task is None:
                return
            self._enrich(task, event)
            if task.outcome is not None:
                self._end(task, event)
        except Exception:
            self._log_once(type(event), "telemetry could not record a %s", event.event_type)

    def _enrich(self, task: TaskRecord, event: BaseEvent) -> None:
        for enricher in self.enrichers:
            try:
                task.attributes.update(enricher(event))
            except Exception:
                self._log_once(enricher, "span enricher %r raised", enricher)

    def _end(self, task: TaskRecord, event: BaseEvent) -> None:
        if self._otel is not None and task.outcome != "canceled":
            self._otel.record_duration(task, getattr(event, "duration_seconds", 0.0))
        error = getattr(event, "error_type", None)
        self._add_span(task, task.outcome or "", event.event_time, error)

    def _add_span(self, task: TaskRecord, status: str, ended: float, error: str | None) -> None:
        if self.tracer is None:
            return
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
        self.tracer.end(span, int(max(ended, task.begun_at) * 1e9), error)

    def _log_once(self, key: object, message: str, *args: object) -> None:
        if key not in self._failures_logged:
            self._failures_logged.add(key)
            logger.exception(message + "; further failures are not logged", *args)


def _plain(value: Any) -> Any:
    """Return what a span can hold as an attribute: scalars as they are, others in words."""
    return value if isinstance(value, (str, bool, int, float)) else str(value)
