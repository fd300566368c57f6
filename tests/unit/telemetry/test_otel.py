"""OpenTelemetry: separate providers, the given processors and readers, and its absence."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from rhapsody.errors import MissingExtraError
from rhapsody.telemetry.manager import TelemetryManager

WITHOUT_OTEL = """
import asyncio, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())

from rhapsody.errors import MissingExtraError
from rhapsody.telemetry import TelemetryManager

for options in ({"span_processors": [object()]}, {"metric_readers": [object()]}, {"resource": 1}):
    try:
        TelemetryManager("s", **options)
    except MissingExtraError as error:
        assert ".[telemetry]" in str(error), error
    else:
        raise AssertionError(options)

async def main():
    telemetry = TelemetryManager("s", checkpoint_path=sys.argv[1])
    await telemetry.start()
    types = []
    telemetry.subscribe(lambda event: types.append(event.event_type))
    task = {"uid": "t", "backend": "b", "function": print}
    with telemetry.span_scope("workflow"):
        telemetry.on_task_submitted(task)
    telemetry.on_task_state(task, "DONE")
    await telemetry.stop()
    assert types == ["SessionStarted", "TaskSubmitted", "TaskCompleted", "SessionEnded"], types
    workflow, task, session = telemetry.read_traces()
    assert task.parent.span_id == workflow.context.span_id
    assert telemetry.read_metrics()["tasks_completed"] == 1
    assert telemetry.summary()["tasks"]["completed"] == 1

asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


def test_telemetry_works_without_opentelemetry(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_OTEL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.telemetry.jsonl"))) == 1


def test_error_without_opentelemetry_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rhapsody.telemetry.otel", None)
    with pytest.raises(MissingExtraError, match=r"\.\[telemetry\]"):
        TelemetryManager("s", metric_readers=[object()])


def run(manager: TelemetryManager, uid: str, state: str = "DONE", **fields: Any) -> None:
    task = {"uid": uid, "backend": "local", "function": run, **fields}
    manager.on_task_submitted(task)
    manager.on_task_state(task, "RUNNING")
    manager.on_task_state(task, state)


async def test_spans_reach_the_given_processor_with_the_resource() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    resources = pytest.importorskip("opentelemetry.sdk.resources")
    exporter = memory.InMemorySpanExporter()
    manager = TelemetryManager(
        "session.1",
        span_processors=[sdk.BatchSpanProcessor(exporter)],
        resource=resources.Resource({"service.name": "mine"}),
    )
    await manager.start()
    with manager.span_scope("workflow"):
        run(manager, "1", "FAILED", exception=ValueError("no"))
    await manager.stop()  # flushes the batch
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"session", "workflow", "task"}
    task = spans["task"]
    assert task.parent.span_id == spans["workflow"].context.span_id
    assert task.status.status_code.name == "ERROR"
    assert task.attributes["task_id"] == "1"
    assert task.resource.attributes["service.name"] == "mine"
    assert task.resource.attributes["session_id"] == "session.1"
    assert manager.read_traces() == exporter.get_finished_spans()


async def test_metrics_have_counts_by_backend_and_a_histogram() -> None:
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    manager = TelemetryManager("session.1", metric_readers=[reader])
    await manager.start()
    run(manager, "1")
    run(manager, "2", backend="gpu")
    run(manager, "3", "FAILED")
    run(manager, "4", "RUNNING")

    ours = points(manager.read_metrics())
    theirs = points(reader.get_metrics_data())
    for found in (ours, theirs):
        assert found["tasks_submitted"] == {"local": 3, "gpu": 1}
        assert found["tasks_completed"] == {"local": 1, "gpu": 1}
        assert found["tasks_failed"]["local"] == 1
        assert found["tasks_running"] == {"local": 1, "gpu": 0}
        assert found["task_duration_seconds"] == {"local": 2, "gpu": 1}
    await manager.stop()
    assert points(manager.read_metrics())["tasks_submitted"] == {"local": 3, "gpu": 1}


async def test_resources_are_gauges() -> None:
    pytest.importorskip("opentelemetry.sdk")

    class Backend:
        def get_statistics(self) -> dict[str, int]:
            return {"pending": 0}

    manager = TelemetryManager("session.1")
    updates = 0
    seen = asyncio.Event()

    def on_event(event: Any) -> None:
        nonlocal updates
        updates += event.event_type == "ResourceUpdate"
        if updates == 2:
            seen.set()

    manager.subscribe(on_event)
    manager.attach_backend(Backend(), backend_name="pool", interval=0.01)
    await manager.start()
    await asyncio.wait_for(seen.wait(), 5)
    found = points(manager.read_metrics())
    assert 0 < found["node_memory_utilization"]["pool"] < 100
    assert found["node_cpu_utilization"]["pool"] >= 0
    await manager.stop()


async def test_global_providers_are_not_changed() -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    before = trace.get_tracer_provider()
    manager = TelemetryManager("session.1")
    await manager.start()
    with manager.span_scope("workflow"):
        assert not trace.get_current_span().get_span_context().is_valid
    await manager.stop()
    assert trace.get_tracer_provider() is before


def points(metrics: Any) -> dict[str, dict[str, float]]:
    """Return the value of each metric (the count of a histogram), by name and backend."""
    found: dict[str, dict[str, float]] = {}
    for resource in metrics.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                values = found.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    value = point.count if hasattr(point, "count") else point.value
                    values[point.attributes["backend"]] = value
    return found
