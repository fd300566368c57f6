"""The telemetry manager: takes events in, and answers what happened.

`emit` only queues. A callback on the owner's loop records what is queued (counts, spans,
metrics); subscribers and the checkpoint each have a task of their own behind it. The readers
record what is still queued first, so that `summary()` right after `await task` has that task.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rhapsody.api.errors import ConfigurationError, MissingExtraError, SessionError
from rhapsody.backends.protocol import TaskStates, task_kind, task_name
from rhapsody.telemetry.checkpoint import Checkpoint
from rhapsody.telemetry.events import (
    BaseEvent,
    SessionEnded,
    SessionStarted,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskStarted,
    TaskSubmitted,
    make_event,
)
from rhapsody.telemetry.inbox import Inbox
from rhapsody.telemetry.recorder import Recorder, SpanEnricher
from rhapsody.telemetry.resources import ResourcePoller
from rhapsody.telemetry.spans import Scope, current_span, open_scope, span_dict
from rhapsody.telemetry.subscribers import Subscribers

__all__ = ["TelemetryManager"]

MAX_RECORDS = 100_000
_BATCH = 500

T = TypeVar("T")


class TelemetryManager:
    """Collects the events of one session or engine.

    Memory is bounded: the latest `max_records` spans are kept, and as many events may wait to be
    recorded, to be delivered and to be written; what comes beyond is dropped and counted in
    `summary()["events"]`.

    Args:
        session_id: Whose telemetry it is; it is in every event, span and metric.
        checkpoint_interval: Seconds between lines of metrics in the checkpoint file, or None.
        checkpoint_path: Directory of the checkpoint file (JSON lines), or None for no file.
        span_processors: OpenTelemetry span processors, with their exporters.
        metric_readers: OpenTelemetry metric readers.
        resource: OpenTelemetry resource that the telemetry is of.
        max_records: The bound.

    Raises:
        MissingExtraError: Processors, readers or a resource were passed without OpenTelemetry.
        ConfigurationError: An interval or a bound is not positive.
    """

    def __init__(
        self,
        session_id: str,
        checkpoint_interval: float | None = None,
        checkpoint_path: str | None = None,
        span_processors: Sequence[Any] | None = None,
        metric_readers: Sequence[Any] | None = None,
        resource: Any = None,
        *,
        max_records: int = MAX_RECORDS,
    ) -> None:
        _check_positive("checkpoint_interval", checkpoint_interval)
        _check_positive("max_records", max_records)
        self._session_id = session_id
        given = bool(span_processors or metric_readers or resource is not None)
        self._otel_class = _load_otel(required=given)
        self._otel_options = {
            "span_processors": tuple(span_processors or ()),
            "metric_readers": tuple(metric_readers or ()),
            "resource": resource,
        }
        self._otel: Any = None
        self._recorder = Recorder(max_records, self._on_span)
        self._lock = threading.RLock()
        self._inbox: Inbox[tuple[BaseEvent, Any]] = Inbox(max_records, self._on_events)
        self._subscribers = Subscribers(max_records)
        self._resources = ResourcePoller(self.emit)
        self._checkpoint: Checkpoint | None = None
        if checkpoint_path is not None:
            self._checkpoint = Checkpoint(
                checkpoint_path,
                session_id,
                checkpoint_interval,
                lambda: self._read(self._recorder.ledger.metrics),
                max_records,
            )
        self._begun: dict[str, float] = {}
        self._started_at: float | None = None
        self._duration: float | None = None
        self._stop_lock = asyncio.Lock()
        self._stopped = False

    @property
    def session_id(self) -> str:
        """Whose telemetry it is."""
        return self._session_id

    async def start(self) -> None:
        """Begin, on the running loop; again while running, nothing happens.

        Raises:
            SessionError: It was stopped already.
            OSError: The checkpoint file cannot be made.
        """
        if self._duration is not None:
            raise SessionError("this TelemetryManager was stopped; make a new one")
        if self._started_at is not None:
            return
        self._started_at = time.monotonic()
        if self._checkpoint is not None:
            try:
                await self._checkpoint.create()
            except BaseException:
                self._started_at = None
                raise
        if self._otel_class is not None:
            self._otel = self._otel_class(
                self._recorder.keep, self._recorder.ledger, self._session_id, **self._otel_options
            )
        self._recorder.open(self._otel, self._session_id)
        self._emit_own(SessionStarted)
        if self._checkpoint is not None:
            self._checkpoint.start()
        self._subscribers.start()
        self._resources.start()
        self._inbox.bind()

    async def stop(self) -> None:
        """Record, deliver, write and export what is left; again, nothing happens.

        Events that come later are dropped. The readers go on working. Exporters passed in are
        flushed in a thread, for as long as they take.
        """
        async with self._stop_lock:
            if self._recorder.tracer is None or self._stopped:
                return
            await self._resources.close()
            if self._duration is None:
                seconds = self._read(self.session_duration)  # leaves room for one event more
                self._emit_own(SessionEnded, duration_seconds=seconds)
                self._inbox.close()
                self._read(self._recorder.close)
                self._duration = self.session_duration()
            await self._subscribers.close()
            if self._checkpoint is not None:
                await self._checkpoint.close()
            if self._otel is not None:
                await asyncio.to_thread(self._otel.close)
            self._stopped = True

    def emit(self, event: BaseEvent) -> None:
        """Take an event in, from any thread; never blocks.

        Its task's span becomes a child of the `span_scope` that is open here.
        """
        self._inbox.put((event, current_span(self)))

    def subscribe(self, callback: Callable[[BaseEvent], Any]) -> None:
        """Call `callback`, a function or a coroutine function, with every event from now on.

        Callbacks run on the owner's loop, one event after the other. One that raises is logged.
        """
        self._subscribers.add(callback)

    def register_span_enricher(self, func: SpanEnricher) -> None:
        """Add what `func(event)` returns, a mapping, to the attributes of the task's span."""
        self._recorder.enrichers.append(func)

    @contextmanager
    def span_scope(self, name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Open a span around the body; scopes and tasks inside become its children.

        The scope follows coroutines and tasks that are started in it. Nothing happens unless the
        manager runs.

        Args:
            name: The span's name, for example "workflow".
            attributes: The span's attributes.
        """
        tracer = self._recorder.tracer
        if tracer is None or self._duration is not None:
            yield
            return
        parent = current_span(self) or self._recorder.root
        span = tracer.start(name, parent, dict(attributes or {}), time.time_ns())
        token = open_scope.set(Scope(self, span, open_scope.get()))
        error: str | None = None
        try:
            yield
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            open_scope.reset(token)
            tracer.end(span, time.time_ns(), error)

    def attach_backend(
        self,
        backend: Any,
        session_id: str | None = None,
        backend_name: str | None = None,
        interval: float = 5.0,
    ) -> None:
        """Emit `ResourceUpdate` for a backend that has `get_statistics()`; accept any other.

        Args:
            backend: The backend; `get_statistics()` returns a mapping, or an awaitable of one.
            session_id: The session that the events name; by default the manager's.
            backend_name: The backend that the events name; by default its `name`.
            interval: Seconds between updates.

        Raises:
            ConfigurationError: The interval is not positive.
        """
        _check_positive("interval", interval)
        if callable(getattr(backend, "get_statistics", None)):
            name = backend_name or str(getattr(backend, "name", type(backend).__name__))
            self._resources.add(backend, session_id or self._session_id, name, interval)

    def on_task_created(self, task: Mapping[str, Any]) -> None:
        """Emit `TaskCreated` for a task's mapping."""
        self._emit_task(TaskCreated, task)

    def on_task_submitted(self, task: Mapping[str, Any]) -> None:
        """Emit `TaskSubmitted` for a task's mapping."""
        self._begun[task["uid"]] = time.monotonic()
        self._emit_task(TaskSubmitted, task)

    def on_task_state(self, task: Mapping[str, Any], state: str) -> None:
        """Emit the event of a state: RUNNING, DONE, FAILED or CANCELED; ignore any other."""
        uid = task["uid"]
        now = time.monotonic()
        if state == TaskStates.RUNNING:
            self._begun[uid] = now
            self._emit_task(TaskStarted, task)
        elif state in TaskStates.terminal_states:
            seconds = now - self._begun.pop(uid, now)
            if state == TaskStates.DONE:
                self._emit_task(TaskCompleted, task, duration_seconds=seconds)
            elif state == TaskStates.CANCELED:
                self._emit_task(TaskCanceled, task, duration_seconds=seconds)
            else:
                exception = task.get("exception")
                error = type(exception).__name__ if exception is not None else "unknown"
                self._emit_task(TaskFailed, task, duration_seconds=seconds, error_type=error)

    def task_count(self) -> dict[str, int]:
        """Return how many tasks were submitted, are running, completed, failed and canceled."""
        return self._read(self._recorder.ledger.counts)

    def summary(self) -> dict[str, Any]:
        """Return what happened so far.

        Returns:
            `session_id`; `duration_seconds` of the session; `tasks`, as `task_count()`;
            `duration`, the mean, extremes and percentiles of how long tasks ran, empty where none
            has; `backends`, the same two by backend; `resources`, the latest update by backend
            and node; `events`, how many were recorded, and how many were dropped on the way in,
            to the subscribers and to the checkpoint.
        """
        return self._read(self._summarize)

    def task_spans(self) -> list[dict[str, Any]]:
        """Return the latest tasks that ended, one dict each.

        Returns:
            `task_id`, `backend`, `executable`, `task_type`, `status` ("completed", "failed",
            "canceled", or "unfinished" after a stop), `error_type` of those that failed, what
            span enrichers added, ids and times.
        """
        spans = map(span_dict, (span for span in self.read_traces() if span.name == "task"))
        return [{**span.pop("attributes"), **span} for span in spans]

    def read_traces(self) -> tuple[Any, ...]:
        """Return the latest spans that ended: OpenTelemetry's `ReadableSpan`, or alike."""
        return self._read(lambda: tuple(self._recorder.spans))

    def read_metrics(self) -> Any:
        """Return the metrics: OpenTelemetry's `MetricsData`, or without it a dict of totals."""
        ledger = self._recorder.ledger
        return self._read(self._otel.read_metrics if self._otel else ledger.metrics)

    def session_duration(self) -> float:
        """Return the seconds from start to stop, or to now; 0 before the start."""
        if self._duration is not None:
            return self._duration
        return time.monotonic() - self._started_at if self._started_at is not None else 0.0

    def _emit_own(self, cls: type[BaseEvent], **fields: Any) -> None:
        self.emit(make_event(cls, session_id=self._session_id, backend="", **fields))

    def _emit_task(self, cls: type[BaseEvent], task: Mapping[str, Any], **fields: Any) -> None:
        kind = task_kind(task)
        self.emit(
            make_event(
                cls,
                session_id=self._session_id,
                backend=task.get("backend") or "",
                task_id=task["uid"],
                attributes={"executable": task_name(task, kind), "task_type": kind or ""},
                **fields,
            )
        )

    def _on_events(self) -> None:
        self._record(_BATCH)
        if self._inbox:
            self._inbox.notify()

    def _read(self, read: Callable[[], T]) -> T:
        with self._lock:
            self._record(len(self._inbox))
            return read()

    def _record(self, limit: int) -> None:
        with self._lock:
            for event, scope_span in self._inbox.take(limit):
                self._recorder.record(event, scope_span)
                self._subscribers.put(event)
                if self._checkpoint is not None:
                    self._checkpoint.put(event)

    def _on_span(self, span: Any) -> None:
        if self._checkpoint is not None:
            self._checkpoint.put(span)

    def _summarize(self) -> dict[str, Any]:
        ledger = self._recorder.ledger
        return {
            "session_id": self._session_id,
            "duration_seconds": self.session_duration(),
            "tasks": ledger.counts(),
            "duration": ledger.durations(),
            "backends": {
                name: {"tasks": ledger.counts(name), "duration": ledger.durations(name)}
                for name in ledger.backends()
            },
            "resources": {
                key: {
                    "backend": event.backend,
                    "node_id": event.node_id,
                    "cpu_percent": event.cpu_percent,
                    "memory_percent": event.memory_percent,
                    "memory_bytes": event.memory_bytes,
                    "statistics": dict(event.attributes),
                }
                for key, event in ledger.resources.items()
            },
            "events": {
                "recorded": self._recorder.recorded,
                "dropped": self._inbox.dropped,
                "undelivered": self._subscribers.dropped,
                "unwritten": self._checkpoint.dropped if self._checkpoint else 0,
            },
        }


def _load_otel(*, required: bool) -> Any:
    """Return the OpenTelemetry tracer's class, or None where that is not installed."""
    try:
        from rhapsody.telemetry.otel import OtelTracer
    except ImportError as error:
        if required:
            raise MissingExtraError(
                "passing span_processors, metric_readers or a resource to telemetry",
                "opentelemetry-sdk",
                "telemetry",
            ) from error
        return None
    return OtelTracer


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ConfigurationError(f"{name} is {value!r}; expected a number above 0, or None")
