"""Spans: plain spans, the scopes that nest them, and their form as dicts.

A plain span has those attributes of OpenTelemetry's `ReadableSpan` that are read here (`name`,
`context`, `parent`, `start_time`, `end_time`, `attributes`, `status`), so readers need not
distinguish the two.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = ["Scope", "Span", "SpanTracer", "Tracer", "current_span", "open_scope", "span_dict"]


class StatusCode(enum.Enum):
    """The status of a span, with OpenTelemetry's values."""

    UNSET = 0
    OK = 1
    ERROR = 2


class Status(NamedTuple):
    """The status of a span, with a description of its error."""

    status_code: StatusCode = StatusCode.UNSET
    description: str | None = None


class SpanContext(NamedTuple):
    """The ids of a span."""

    trace_id: int
    span_id: int


class SpanEvent(NamedTuple):
    """Something that happened during a span, at a time in nanoseconds since the epoch."""

    name: str
    attributes: dict[str, Any]
    timestamp: int


@dataclass
class Span:
    """A plain span. Times are in nanoseconds since the epoch."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    start_time: int
    attributes: dict[str, Any] = field(default_factory=dict)
    end_time: int | None = None
    status: Status = field(default_factory=Status)
    events: list[SpanEvent] = field(default_factory=list)

    def add_event(self, name: str, attributes: dict[str, Any], timestamp: int) -> None:
        """Add an event, at a time in nanoseconds since the epoch."""
        self.events.append(SpanEvent(name, attributes, timestamp))


class Tracer(Protocol):
    """Creates spans, and records durations."""

    def start(self, name: str, parent: Any, attributes: dict[str, Any], start_time: int) -> Any:
        """Start a span below `parent` (None: a new trace) at a time in ns since the epoch."""

    def end(
        self, span: Any, end_time: int, error: str | None = None, succeeded: bool = False
    ) -> None:
        """End a span; `error` describes its failure, or else it may have `succeeded`."""

    def record_duration(self, backend: str, task_type: str, seconds: float) -> None:
        """Record how long a task ran."""


class SpanTracer:
    """The tracer of plain spans, which needs no other package.

    Args:
        on_end: Called with each span that has ended.
    """

    def __init__(self, on_end: Callable[[Span], None]) -> None:
        self._on_end = on_end
        self._random = random.Random()

    def start(self, name: str, parent: Any, attributes: dict[str, Any], start_time: int) -> Span:
        """Start a span; see `Tracer`."""
        trace_id = parent.context.trace_id if parent else self._new_id(128)
        return Span(
            name=name,
            context=SpanContext(trace_id, self._new_id(64)),
            parent=parent.context if parent else None,
            start_time=start_time,
            attributes=dict(attributes),
        )

    def end(
        self, span: Span, end_time: int, error: str | None = None, succeeded: bool = False
    ) -> None:
        """End a span; see `Tracer`."""
        span.end_time = end_time
        if error is not None:
            span.status = Status(StatusCode.ERROR, error)
        elif succeeded:
            span.status = Status(StatusCode.OK)
        self._on_end(span)

    def record_duration(self, backend: str, task_type: str, seconds: float) -> None:
        """Do nothing: the counters have all durations; see `Tracer`."""

    def _new_id(self, bits: int) -> int:
        return self._random.getrandbits(bits) or 1  # 0 means "no span"


class Scope(NamedTuple):
    """An open span of one manager, with the scope around it."""

    owner: object
    span: Any
    outer: Scope | None


open_scope: ContextVar[Scope | None] = ContextVar("rhapsody_open_scope", default=None)
"""The innermost scope; coroutines and tasks inherit it."""


def current_span(owner: object) -> Any:
    """Return the innermost open span of a manager, or None."""
    scope = open_scope.get()
    while scope is not None and scope.owner is not owner:
        scope = scope.outer
    return scope.span if scope is not None else None


def span_dict(span: Any) -> dict[str, Any]:
    """Return a finished span, plain or OpenTelemetry's, as a dict for JSON.

    Returns:
        Ids in hexadecimal, times in seconds since the epoch, the status and the attributes.
    """
    return {
        "name": span.name,
        "span_id": f"{span.context.span_id:016x}",
        "trace_id": f"{span.context.trace_id:032x}",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "start_time": span.start_time / 1e9,
        "end_time": span.end_time / 1e9,
        "duration_seconds": (span.end_time - span.start_time) / 1e9,
        "status_code": span.status.status_code.name,
        "status_description": span.status.description,
        "attributes": dict(span.attributes or {}),
    }
