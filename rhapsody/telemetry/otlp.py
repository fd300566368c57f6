"""Spans in OpenTelemetry's JSON format (OTLP/JSON), which Jaeger, Tempo and Grafana import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["traces_data"]

KIND_INTERNAL = 1
"""The kind of all spans: SPAN_KIND_INTERNAL in opentelemetry/proto/trace/v1/trace.proto."""


def traces_data(spans: Iterable[Any], resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return finished spans, plain or OpenTelemetry's, as the message `TracesData`.

    Args:
        spans: The spans.
        resource: Attributes of the resource that the spans belong to.
    """
    scope = {"scope": {"name": "rhapsody"}, "spans": [_span(span) for span in spans]}
    return {
        "resourceSpans": [
            {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}
        ]
    }


def _span(span: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"code": span.status.status_code.value}
    if span.status.description:
        status["message"] = span.status.description
    message = {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "name": span.name,
        "kind": KIND_INTERNAL,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": status,
    }
    if span.parent:
        message["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.events:
        message["events"] = [
            {
                "timeUnixNano": str(event.timestamp),
                "name": event.name,
                "attributes": _attributes(event.attributes or {}),
            }
            for event in span.events
        ]
    return message


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):  # 64-bit integers are strings in the JSON of protocol buffers
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, (list, tuple)):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
