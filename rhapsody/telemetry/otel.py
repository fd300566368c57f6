"""OpenTelemetry: a tracer and a meter with their own providers, never the global ones.

OpenTelemetry's counters are observable: it reads `TaskCounters` when it collects metrics, so a task
costs only one span and one histogram sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from rhapsody.telemetry.counters import TaskCounters

__all__ = ["OtelTracer"]

_SCOPE_NAME = "rhapsody"


class _OnEnd(SpanProcessor):
    """Calls a function with each span that has ended."""

    def __init__(self, on_end: Callable[[Any], None]) -> None:
        self._callback = on_end

    def on_end(self, span: ReadableSpan) -> None:
        self._callback(span)


class OtelTracer:
    """Creates OpenTelemetry's spans and metrics; see `rhapsody.telemetry.spans.Tracer`.

    Args:
        on_end: Called with each span that has ended.
        counters: The counts to observe.
        session_id: The attribute `session_id` of the resource.
        span_processors: The user's span processors, with their exporters.
        metric_readers: The user's metric readers.
        resource: The resource of all spans and metrics; None: the one from the environment
            (`OTEL_SERVICE_NAME`), or else the service "rhapsody".
    """

    def __init__(
        self,
        on_end: Callable[[Any], None],
        counters: TaskCounters,
        session_id: str,
        span_processors: Sequence[Any] = (),
        metric_readers: Sequence[Any] = (),
        resource: Any = None,
    ) -> None:
        self._counters = counters
        resource = resource or _default_resource()
        resource = resource.merge(Resource({"session_id": session_id}))
        self._tracer_provider = TracerProvider(resource=resource)
        self._tracer_provider.add_span_processor(_OnEnd(on_end))
        for processor in span_processors:
            self._tracer_provider.add_span_processor(processor)
        self._tracer = self._tracer_provider.get_tracer(_SCOPE_NAME)
        self._reader = InMemoryMetricReader()
        self._last_metrics: Any = None
        self._meter_provider = MeterProvider(
            metric_readers=[self._reader, *metric_readers], resource=resource
        )
        self._create_instruments()

    def start(self, name: str, parent: Any, attributes: dict[str, Any], start_time: int) -> Span:
        """Start a span; see `Tracer`."""
        # An empty context: the caller's current span must not become the parent.
        context = set_span_in_context(parent) if parent is not None else Context()
        return self._tracer.start_span(
            name, context=context, attributes=attributes, start_time=start_time
        )

    def end(
        self, span: Span, end_time: int, error: str | None = None, succeeded: bool = False
    ) -> None:
        """End a span; see `Tracer`."""
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        elif succeeded:
            span.set_status(Status(StatusCode.OK))
        span.end(end_time)

    def record_duration(self, backend: str, task_type: str, seconds: float) -> None:
        """Add a task's duration to the histogram; see `Tracer`."""
        self._durations.record(seconds, {"backend": backend, "task_type": task_type})

    @property
    def resource_attributes(self) -> dict[str, Any]:
        """The attributes of the resource of all spans and metrics."""
        return dict(self._tracer_provider.resource.attributes)

    def read_metrics(self) -> Any:
        """Return the metrics as OpenTelemetry's `MetricsData`."""
        if self._last_metrics is None:
            return self._reader.get_metrics_data()
        return self._last_metrics

    def close(self) -> None:
        """Flush and shut down all processors and readers; blocks until they are done."""
        self._last_metrics = self._reader.get_metrics_data()
        self._tracer_provider.force_flush()
        self._tracer_provider.shutdown()
        self._meter_provider.shutdown()

    def _create_instruments(self) -> None:
        meter = self._meter_provider.get_meter(_SCOPE_NAME)
        for state in ("submitted", "started", "completed", "failed", "canceled"):
            meter.create_observable_counter(
                f"tasks_{state}", [self._observe_tasks(state)], "1", f"Tasks {state}"
            )
        meter.create_observable_up_down_counter(
            "tasks_running", [self._observe_tasks("running")], "1", "Tasks running now"
        )
        self._durations = meter.create_histogram(
            "task_duration_seconds", "s", "How long completed and failed tasks ran"
        )
        meter.create_observable_gauge(
            "node_cpu_utilization",
            [self._observe_resource("cpu_percent")],
            "%",
            "Use of all CPUs of the node",
        )
        meter.create_observable_gauge(
            "node_memory_utilization",
            [self._observe_resource("memory_percent")],
            "%",
            "Use of the node's memory",
        )
        meter.create_observable_gauge(
            "node_gpu_utilization",
            [self._observe_resource("gpu_percent")],
            "%",
            "Use of the busiest GPU of the node",
        )

    def _observe_tasks(self, state: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            for (backend, task_type), group in list(self._counters.groups.items()):
                attributes = {"backend": backend, "task_type": task_type}
                yield Observation(getattr(group, state), attributes)

        return observe

    def _observe_resource(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            for event in list(self._counters.resources.values()):
                value = getattr(event, name)
                if value is not None and event.gpu_id is None:
                    attributes = {"backend": event.backend, "node_id": event.node_id or ""}
                    yield Observation(value, attributes)

        return observe


def _default_resource() -> Resource:
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "rhapsody"}))
    return resource
