"""Spans in OpenTelemetry's JSON format."""

import json
from pathlib import Path
from typing import Any

from rhapsody.telemetry import TelemetryManager, make_event
from rhapsody.telemetry.events import define_event
from rhapsody.telemetry.otlp import traces_data
from rhapsody.telemetry.spans import SpanTracer


async def test_export_has_the_tree_of_spans(tmp_path: Path) -> None:
    manager = TelemetryManager("session.1")
    await manager.start()
    with manager.span_scope("workflow"):
        task = {"uid": "task.1", "backend": "local", "function": print}
        manager.on_task_submitted(task)
    manager.on_task_state(task, "DONE")
    await manager.stop()
    file = tmp_path / "new" / "traces.json"
    text = manager.export_as_otlp(file)
    assert file.read_text() == text
    [resource] = json.loads(text)["resourceSpans"]
    attributes = {one["key"]: one["value"] for one in resource["resource"]["attributes"]}
    assert attributes["session_id"] == {"stringValue": "session.1"}
    spans = {span["name"]: span for span in resource["scopeSpans"][0]["spans"]}
    assert spans["task"]["parentSpanId"] == spans["workflow"]["spanId"]
    assert spans["workflow"]["parentSpanId"] == spans["session"]["spanId"]
    assert "parentSpanId" not in spans["session"]
    assert spans["task"]["status"] == {"code": 1}
    assert int(spans["task"]["endTimeUnixNano"]) >= int(spans["task"]["startTimeUnixNano"])


def test_values_have_the_types_of_the_format() -> None:
    spans: list[Any] = []
    tracer = SpanTracer(spans.append)
    attributes = {"b": True, "i": 7, "f": 0.5, "s": "x", "l": [1, "y"], "o": None}
    tracer.end(tracer.start("one", None, attributes, 1), 2, "ValueError")
    span = traces_data(spans, {})["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert {one["key"]: one["value"] for one in span["attributes"]} == {
        "b": {"boolValue": True},
        "i": {"intValue": "7"},
        "f": {"doubleValue": 0.5},
        "s": {"stringValue": "x"},
        "l": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "y"}]}},
        "o": {"stringValue": "None"},
    }
    assert span["status"] == {"code": 2, "message": "ValueError"}


async def test_annotation_becomes_an_event_of_the_open_span() -> None:
    step = define_event("test.Step", number=int)
    manager = TelemetryManager("session.1")
    await manager.start()
    event = make_event(step, session_id="session.1", backend="", attributes={"k": 1})
    manager.annotate_current_span(event)  # no scope is open
    with manager.span_scope("workflow"):
        manager.annotate_current_span(event)
    await manager.stop()
    spans = json.loads(manager.export_as_otlp())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert {span["name"]: span.get("events") for span in spans} == {
        "session": None,
        "workflow": [
            {
                "timeUnixNano": str(int(event.event_time * 1e9)),
                "name": "test.Step",
                "attributes": [{"key": "k", "value": {"stringValue": "1"}}],
            }
        ],
    }
