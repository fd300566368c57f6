"""The telemetry manager: collects events, and returns counts, spans and metrics.

`emit` only queues an event. A callback on the owner's loop records the queued events (counts,
spans, metrics); subscribers and the checkpoint file each have their own asyncio task. Reading
methods record the queue first, so that `summary()` right after `await task` includes the task.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rhapsody.backends.protocol import TaskStates, task_kind, task_name
from rhapsody.errors import ConfigurationError, MissingExtraError, SessionError
from rhapsody.telemetry.bounded_queue import BoundedQueue
from rhapsody.telemetry.checkpoint import Checkpoint
from rhapsody.telemetry.events import (
    BaseEvent,
    SessionEnded,
    SessionStarted,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskQueued,
    TaskStarted,
    TaskSubmitted,
    make_event,
)
from rhapsody.telemetry.otlp import traces_data
from rhapsody.telemetry.recorder import Recorder, SpanEnricher
from rhapsody.telemetry.resources import ResourcePoller
from rhapsody.telemetry.spans import Scope, SpanTracer, current_span, open_scope, span_dict
from rhapsody.telemetry.subscribers import Subscribers

__all__ = ["TelemetryManager"]

MAX_RECORDS = 100_000
_BATCH = 500

T = TypeVar("T")


class TelemetryManager:
    """Collects the events of one session or engine.

    Memory is bounded: the latest `max_records` spans are kept, and the queues of events to record,
    to deliver and to write hold as many. Further events are dropped and counted in
    `summary()["events"]`.

    Args:
        session_id: The session or engine, named in every event, span and metric.
        checkpoint_interval: Seconds between lines of metrics in the checkpoint file, or None.
        checkpoint_path: Directory of the checkpoint file (JSON lines), or None for no file.
        span_processors: OpenTelemetry span processors, with their exporters.
        metric_readers: OpenTelemetry metric readers.
        resource: The OpenTelemetry resource of all spans and metrics.
        max_records: The limit of each queue and of the kept spans.

    Raises:
        MissingExtraError: Processors, readers or a resource are given, but OpenTelemetry is not
            installed.
        ConfigurationError: `checkpoint_interval` or `max_records` is not positive.
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
        self._queue: BoundedQueue[tuple[BaseEvent, Any]] = BoundedQueue(
            max_records, self._on_events
        )
        self._subscribers = Subscribers(max_records)
        self._resources = ResourcePoller(self.emit)
        self._checkpoint: Checkpoint | None = None
        if checkpoint_path is not None:
            self._checkpoint = Checkpoint(
                checkpoint_path,
                session_id,
                checkpoint_interval,
                lambda: self._read(self._recorder.counters.metrics),
                max_records,
            )
        self._start_times: dict[str, float] = {}
        self._started_at: float | None = None
        self._duration: float | None = None
        self._stop_lock = asyncio.Lock()
        self._stopped = False

    @property
    def session_id(self) -> str:
        """The session or engine that the telemetry belongs to."""
        return self._session_id

    async def start(self) -> None:
        """Start on the running loop. Idempotent.

        Raises:
            SessionError: The manager was stopped before.
            OSError: The checkpoint file cannot be created.
        """
        if self._duration is not None:
            raise SessionError(
                "this TelemetryManager was stopped and cannot be started again; create a new one"
            )
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
                self._recorder.keep, self._recorder.counters, self._session_id, **self._otel_options
            )
        tracer = self._otel or SpanTracer(self._recorder.keep)
        self._recorder.start(tracer, self._session_id)
        self._emit_own(SessionStarted)
        if self._checkpoint is not None:
            self._checkpoint.start()
        self._subscribers.start()
        self._resources.start()
        self._queue.bind()

    async def stop(self) -> None:
        """Record, deliver, write and export the remaining events. Idempotent.

        Later events are dropped. The reading methods still work. Exporters are flushed in a thread,
        without a time limit.
        """
        async with self._stop_lock:
            if self._recorder.tracer is None or self._stopped:
                return
            await self._resources.stop()
            if self._duration is None:
                seconds = self._read(
                    self.session_duration
                )  # empties the queue: the next event is not dropped
                self._emit_own(SessionEnded, duration_seconds=seconds)
                self._queue.close()
                self._read(self._recorder.close)
                self._duration = self.session_duration()
            await self._subscribers.close()
            if self._checkpoint is not None:
                await self._checkpoint.close()
            if self._otel is not None:
                await asyncio.to_thread(self._otel.close)
            self._stopped = True

    def emit(self, event: BaseEvent) -> None:
        """Queue an event, from any thread; never blocks.

        The span of its task becomes a child of the `span_scope` that is open here.
        """
        self._queue.put((event, current_span(self)))

    def subscribe(self, callback: Callable[[BaseEvent], Any]) -> None:
        """Call `callback`, a function or a coroutine function, with every event from now on.

        Callbacks run on the owner's loop, one event at a time. Their exceptions are logged.
        """
        self._subscribers.add(callback)

    def register_span_enricher(self, func: SpanEnricher) -> None:
        """Add what `func(event)` returns, a mapping, to the attributes of the task's span."""
        self._recorder.enrichers.append(func)

    @contextmanager
    def span_scope(self, name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Open a span around the body; spans of scopes and tasks inside become its children.

        Coroutines and asyncio tasks that are started inside inherit the scope. Without a running
        manager, no span is opened.

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

    def annotate_current_span(self, event: BaseEvent) -> None:
        """Add an event to the innermost open `span_scope`; outside of one, do nothing.

        Args:
            event: An event from `make_event`; its time and attributes are those of the span's
                event.
        """
        span = current_span(self)
        if span is not None:
            attributes = {name: str(value) for name, value in event.attributes.items()}
            span.add_event(event.event_type, attributes, int(event.event_time * 1e9))

    def attach_backend(
        self,
        backend: Any,
        session_id: str | None = None,
        backend_name: str | None = None,
        interval: float = 5.0,
    ) -> None:
        """Emit `ResourceUpdate` events for a backend.

        Args:
            backend: The backend. If it has `get_statistics()`, which returns a mapping or an
                awaitable of one, the events have its statistics in their attributes.
            session_id: The session named in the events; None: the manager's.
            backend_name: The backend named in the events; None: the backend's `name`.
            interval: Seconds between updates.

        Raises:
            ConfigurationError: The interval is not positive.
        """
        _check_positive("interval", interval)
        name = backend_name or str(getattr(backend, "name", type(backend).__name__))
        self._resources.add(backend, session_id or self._session_id, name, interval)

    def on_task_created(self, task: Mapping[str, Any]) -> None:
        """Emit `TaskCreated` for a task's mapping."""
        self._emit_task(TaskCreated, task)

    def on_task_submitted(self, task: Mapping[str, Any]) -> None:
        """Emit `TaskSubmitted` for a task's mapping."""
        self._start_times[task["uid"]] = time.monotonic()
        self._emit_task(TaskSubmitted, task)

    def on_task_queued(self, task: Mapping[str, Any]) -> None:
        """Emit `TaskQueued` for a task's mapping."""
        self._emit_task(TaskQueued, task)

    def on_task_state(self, task: Mapping[str, Any], state: str) -> None:
        """Emit the event for the state RUNNING, DONE, FAILED or CANCELED; ignore other states."""
        uid = task["uid"]
        now = time.monotonic()
        if state == TaskStates.RUNNING:
            self._start_times[uid] = now
            self._emit_task(TaskStarted, task)
        elif state in TaskStates.terminal_states:
            seconds = now - self._start_times.pop(uid, now)
            if state == TaskStates.DONE:
                self._emit_task(TaskCompleted, task, duration_seconds=seconds)
            elif state == TaskStates.CANCELED:
                self._emit_task(TaskCanceled, task, duration_seconds=seconds)
            else:
                exception = task.get("exception")
                error = type(exception).__name__ if exception is not None else "unknown"
                self._emit_task(TaskFailed, task, duration_seconds=seconds, error_type=error)

    def task_count(self) -> dict[str, int]:
        """Return the numbers of tasks submitted, running, completed, failed and canceled."""
        return self._read(self._recorder.counters.counts)

    def summary(self) -> dict[str, Any]:
        """Return a summary of all events so far.

        Returns:
            `session_id`; `duration_seconds` of the session; `tasks`, as from `task_count()`;
            `duration`, the mean, extremes and percentiles of how long tasks ran, empty if none
            has ended; `backends`, the same two for each backend; `resources`, the latest update
            of each backend and node; `events`, the numbers of events that were recorded, dropped,
            not delivered to subscribers and not written to the checkpoint file.
        """
        return self._read(self._summarize)

    def task_spans(self) -> list[dict[str, Any]]:
        """Return the tasks that ended last, one dict each.

        Returns:
            `task_id`, `backend`, `executable`, `task_type`, `status` ("completed", "failed",
            "canceled", or "unfinished" after a stop), `error_type` if the task failed, the
            attributes that span enrichers added, ids and times.
        """
        spans = map(span_dict, (span for span in self.read_traces() if span.name == "task"))
        return [{**span.pop("attributes"), **span} for span in spans]

    def read_traces(self) -> tuple[Any, ...]:
        """Return the spans that ended last: OpenTelemetry's `ReadableSpan`, or `Span`."""
        return self._read(lambda: tuple(self._recorder.spans))

    def export_as_otlp(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the spans that ended last in the JSON format of OpenTelemetry's protocol (OTLP).

        Args:
            path: A file to write as well; its folder is created. None: no file.

        Raises:
            OSError: The file cannot be written.
        """
        resource = {"service.name": "rhapsody", "session_id": self._session_id}
        if self._otel is not None:
            resource = self._otel.resource_attributes
        text = json.dumps(traces_data(self.read_traces(), resource))
        if path is not None:
            file = Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return text

    def read_metrics(self) -> Any:
        """Return the metrics: OpenTelemetry's `MetricsData`, or a dict of totals without it."""
        counters = self._recorder.counters
        return self._read(self._otel.read_metrics if self._otel else counters.metrics)

    def latest_resources(self) -> list[dict[str, Any]]:
        """Return the latest `ResourceUpdate` of each backend, node and GPU, as in `summary()`."""
        return self._read(lambda: list(self._resource_updates().values()))

    def session_duration(self) -> float:
        """Return the seconds from start to stop, or until now; 0 before the start."""
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
        if self._queue:
            self._queue.notify()

    def _read(self, read: Callable[[], T]) -> T:
        with self._lock:
            self._record(len(self._queue))
            return read()

    def _record(self, limit: int) -> None:
        with self._lock:
            for event, scope_span in self._queue.take(limit):
                span = self._recorder.record(event, scope_span)
                self._subscribers.put(event)
                if self._checkpoint is not None:
                    self._checkpoint.put((event, span, self._recorder.root))

    def _on_span(self, span: Any) -> None:
        if self._checkpoint is not None:
            self._checkpoint.put(span)

    def _summarize(self) -> dict[str, Any]:
        counters = self._recorder.counters
        return {
            "session_id": self._session_id,
            "duration_seconds": self.session_duration(),
            "tasks": counters.counts(),
            "duration": counters.durations(),
            "backends": {
                name: {"tasks": counters.counts(name), "duration": counters.durations(name)}
                for name in counters.backends()
            },
            "resources": self._resource_updates(),
            "events": {
                "recorded": self._recorder.recorded,
                "dropped": self._queue.dropped,
                "undelivered": self._subscribers.dropped,
                "unwritten": self._checkpoint.dropped if self._checkpoint else 0,
            },
        }

    def _resource_updates(self) -> dict[Any, dict[str, Any]]:
        return {
            key: {
                "backend": event.backend,
                "node_id": event.node_id,
                "cpu_percent": event.cpu_percent,
                "memory_percent": event.memory_percent,
                "memory_bytes": event.memory_bytes,
                "gpu_percent": event.gpu_percent,
                "gpu_id": event.gpu_id,
                "disk_read_bytes": event.disk_read_bytes,
                "disk_write_bytes": event.disk_write_bytes,
                "net_sent_bytes": event.net_sent_bytes,
                "net_recv_bytes": event.net_recv_bytes,
                "statistics": dict(event.attributes),
            }
            for key, event in self._recorder.counters.resources.items()
        }


def _load_otel(*, required: bool) -> Any:
    """Return the OpenTelemetry tracer's class, or None if OpenTelemetry is not installed."""
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
        raise ConfigurationError(f"{name} must be a number above 0, or None, got {value!r}")
