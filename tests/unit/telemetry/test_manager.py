"""The manager, with and without OpenTelemetry: events in, counts and spans out."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError, SessionError
from rhapsody.telemetry import manager as manager_module
from rhapsody.telemetry.events import (
    BaseEvent,
    ResourceUpdate,
    TaskCompleted,
    TaskCreated,
    TaskStarted,
    TaskSubmitted,
    make_event,
)
from rhapsody.telemetry.manager import TelemetryManager


@pytest.fixture(params=["plain", "otel"])
def tracer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(manager_module, "_load_otel", lambda *, required: None)
    else:
        pytest.importorskip("opentelemetry.sdk")


@pytest.fixture
async def telemetry(tracer: None) -> AsyncIterator[TelemetryManager]:
    manager = TelemetryManager("session.1")
    await manager.start()
    yield manager
    await manager.stop()


def task(uid: str = "task.1", **fields: Any) -> dict[str, Any]:
    return {"uid": uid, "backend": "local", "function": task, **fields}


def run(manager: TelemetryManager, one: dict[str, Any], state: str = "DONE") -> None:
    manager.on_task_created(one)
    manager.on_task_submitted(one)
    manager.on_task_state(one, "RUNNING")
    manager.on_task_state(one, state)


def event(cls: type[BaseEvent], **fields: Any) -> BaseEvent:
    return make_event(cls, session_id="session.1", backend="local", **fields)


def collect(manager: TelemetryManager, last: str) -> tuple[list[Any], asyncio.Event]:
    """Subscribe; return the events, and an asyncio event set by one of the type `last`."""
    events: list[Any] = []
    seen = asyncio.Event()

    def on_event(one: BaseEvent) -> None:
        events.append(one)
        if one.event_type == last:
            seen.set()

    manager.subscribe(on_event)
    return events, seen


async def test_summary_includes_pending_events(telemetry: TelemetryManager) -> None:
    run(telemetry, task("1"))
    run(telemetry, task("2", backend="gpu"), "FAILED")
    telemetry.on_task_submitted(task("3"))
    summary = telemetry.summary()
    assert summary["session_id"] == telemetry.session_id == "session.1"
    assert summary["tasks"] == telemetry.task_count()
    assert summary["tasks"] == {
        "submitted": 3,
        "running": 0,
        "completed": 1,
        "failed": 1,
        "canceled": 0,
    }
    assert summary["duration"]["count"] == 2
    assert summary["backends"]["gpu"]["tasks"]["failed"] == 1
    assert set(summary["backends"]["local"]["duration"]) >= {"p50_seconds", "p95_seconds"}
    assert summary["events"]["dropped"] == 0


async def test_task_states_become_events(telemetry: TelemetryManager) -> None:
    events, seen = collect(telemetry, "TaskCanceled")
    run(telemetry, task("1"))
    run(telemetry, task("2", function=None, executable="/bin/ls", exception=OSError("x")), "FAILED")
    run(telemetry, task("3", function=None, prompt="Why?"), "CANCELED")
    telemetry.on_task_state(task("4"), "SOMETHING ELSE")
    await asyncio.wait_for(seen.wait(), 5)
    of_tasks = [one for one in events if one.task_id]
    assert [one.event_type for one in of_tasks if one.task_id == "1"] == [
        "TaskCreated",
        "TaskSubmitted",
        "TaskStarted",
        "TaskCompleted",
    ]
    by_type = {one.event_type: one for one in of_tasks}
    assert by_type["TaskFailed"].error_type == "OSError"
    assert by_type["TaskFailed"].attributes == {
        "executable": "/bin/ls",
        "task_type": "executable",
    }
    assert by_type["TaskCanceled"].attributes["task_type"] == "prompt"
    assert by_type["TaskCompleted"].attributes["executable"] == "task"
    assert by_type["TaskCompleted"].duration_seconds >= 0
    assert not [one for one in of_tasks if one.task_id == "4"]


async def test_task_span_has_description_status_and_times(telemetry: TelemetryManager) -> None:
    telemetry.register_span_enricher(lambda one: {"workflow": one.attributes.get("wf", "none")})
    for cls, at in ((TaskCreated, 1.0), (TaskSubmitted, 2.0), (TaskStarted, 3.0)):
        attributes = {"wf": "w1", "executable": "f", "task_type": "function"}
        telemetry.emit(event(cls, task_id="t", event_time=at, attributes=attributes))
    telemetry.emit(event(TaskCompleted, task_id="t", event_time=7.0, attributes={"wf": "w1"}))
    (span,) = telemetry.task_spans()
    expected = {
        "task_id": "t",
        "backend": "local",
        "executable": "f",
        "task_type": "function",
        "status": "completed",
        "workflow": "w1",
        "start_time": 3.0,
        "end_time": 7.0,
        "duration_seconds": 4.0,
        "wait_seconds": 2.0,
        "status_code": "OK",
    }
    assert {name: span[name] for name in expected} == expected


async def test_failed_task_has_an_error_span(telemetry: TelemetryManager) -> None:
    run(telemetry, task(exception=ValueError("no")), "FAILED")
    (span,) = telemetry.task_spans()
    assert (span["status"], span["status_code"]) == ("failed", "ERROR")
    assert span["error_type"] == span["status_description"] == "ValueError"


async def test_spans_nest_by_scope_across_asyncio_tasks(telemetry: TelemetryManager) -> None:
    async def inside(uid: str) -> None:
        with telemetry.span_scope("block", {"asyncflow.workflow_id": uid}):
            await asyncio.sleep(0)
            telemetry.on_task_created(task(uid))

    with telemetry.span_scope("workflow"):
        await asyncio.gather(inside("a"), inside("b"))
    for uid in "ab":
        telemetry.on_task_state(task(uid), "DONE")
    await telemetry.stop()
    spans = telemetry.read_traces()
    by_id = {span.context.span_id: span for span in spans}
    blocks = {s.attributes["asyncflow.workflow_id"]: s for s in spans if s.name == "block"}
    for span in spans:
        if span.name == "task":
            assert span.parent.span_id == blocks[span.attributes["task_id"]].context.span_id
    for block in blocks.values():
        workflow = by_id[block.parent.span_id]
        assert workflow.name == "workflow"
        assert by_id[workflow.parent.span_id].name == "session"
    assert len({span.context.trace_id for span in spans}) == 1
    assert len(by_id) == len(spans) == 6


async def test_failed_scope_has_an_error_span(telemetry: TelemetryManager) -> None:
    with pytest.raises(KeyError), telemetry.span_scope("workflow"):
        raise KeyError("lost")
    (span,) = telemetry.read_traces()
    assert span.status.status_code.name == "ERROR"
    assert span.status.description == "KeyError: 'lost'"


async def test_scopes_of_two_managers_are_independent(telemetry: TelemetryManager) -> None:
    other = TelemetryManager("session.2")
    await other.start()
    with telemetry.span_scope("mine"), other.span_scope("theirs"):
        telemetry.on_task_created(task())
    telemetry.on_task_state(task(), "DONE")
    await other.stop()
    mine, of_task = telemetry.read_traces()
    assert of_task.parent.span_id == mine.context.span_id
    assert of_task.context.trace_id == mine.context.trace_id


async def test_scope_opens_no_span_unless_running(tracer: None) -> None:
    manager = TelemetryManager("s")
    with manager.span_scope("early"):
        pass
    await manager.start()
    await manager.stop()
    with manager.span_scope("late"):
        pass
    assert [span.name for span in manager.read_traces()] == ["session"]


async def test_open_tasks_have_unfinished_spans_after_stop(
    telemetry: TelemetryManager,
) -> None:
    telemetry.on_task_submitted(task())
    await telemetry.stop()
    assert [span["status"] for span in telemetry.task_spans()] == ["unfinished"]


async def test_start_and_stop_are_idempotent(telemetry: TelemetryManager) -> None:
    await telemetry.start()
    await asyncio.gather(telemetry.stop(), telemetry.stop())
    await telemetry.stop()
    duration = telemetry.session_duration()
    assert 0 < duration == telemetry.session_duration()
    with pytest.raises(SessionError):
        await telemetry.start()
    assert [span.name for span in telemetry.read_traces()] == ["session"]


async def test_stop_before_start_does_nothing(tracer: None) -> None:
    manager = TelemetryManager("s")
    await manager.stop()
    assert manager.session_duration() == 0
    assert manager.summary()["tasks"]["submitted"] == 0
    assert manager.read_traces() == ()


async def test_events_after_stop_are_dropped_and_counted(telemetry: TelemetryManager) -> None:
    run(telemetry, task("1"))
    await telemetry.stop()
    run(telemetry, task("2"))
    summary = telemetry.summary()
    assert (summary["tasks"]["completed"], summary["events"]["dropped"]) == (1, 4)
    telemetry.read_metrics()


async def test_full_queue_drops_and_counts_events(tracer: None) -> None:
    manager = TelemetryManager("s", max_records=10)
    await manager.start()
    for number in range(50):  # in one go: the loop cannot record meanwhile
        manager.on_task_submitted(task(str(number)))
    assert manager.summary()["events"]["dropped"] == 41  # SessionStarted took a place
    await manager.stop()


async def test_only_the_latest_spans_are_kept(tracer: None) -> None:
    manager = TelemetryManager("s", max_records=10)
    await manager.start()
    for number in range(30):
        run(manager, task(str(number)))
        manager.task_count()
    kept = [span["task_id"] for span in manager.task_spans()]
    assert kept == [str(number) for number in range(20, 30)]
    assert manager.task_count()["completed"] == 30
    await manager.stop()


async def test_events_from_a_thread_are_recorded_and_delivered(
    telemetry: TelemetryManager,
) -> None:
    events, seen = collect(telemetry, "TaskCompleted")
    thread = threading.Thread(target=run, args=(telemetry, task()))
    thread.start()
    await asyncio.wait_for(seen.wait(), 5)
    thread.join()
    assert len([one for one in events if one.task_id]) == 4
    assert telemetry.task_count()["completed"] == 1


async def test_subscribers_receive_every_event_in_order(
    telemetry: TelemetryManager,
) -> None:
    plain: list[str] = []
    slow: list[str] = []

    async def subscriber(one: BaseEvent) -> None:
        await asyncio.sleep(0)
        slow.append(one.event_id)

    telemetry.subscribe(lambda one: plain.append(one.event_id))
    telemetry.subscribe(subscriber)
    for number in range(300):
        run(telemetry, task(str(number)))
    await telemetry.stop()
    assert plain == slow
    assert len(plain) == 1200 + 1  # with the end of the session


async def test_failing_subscriber_does_not_affect_others(
    telemetry: TelemetryManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def canceled(one: BaseEvent) -> None:
        raise asyncio.CancelledError

    def broken(one: BaseEvent) -> None:
        raise RuntimeError("no")

    got: list[str] = []
    telemetry.subscribe(broken)
    telemetry.subscribe(canceled)
    telemetry.subscribe(lambda one: got.append(one.event_type))
    with caplog.at_level(logging.ERROR, logger="rhapsody.telemetry"):
        run(telemetry, task())
        await telemetry.stop()
    assert got == [
        "TaskCreated",
        "TaskSubmitted",
        "TaskStarted",
        "TaskCompleted",
        "SessionEnded",
    ]
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == 2
    assert [r.getMessage().endswith("raised 5 times") for r in caplog.records].count(True) == 2


async def test_hanging_subscriber_delays_neither_counts_nor_stop(
    telemetry: TelemetryManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rhapsody.telemetry.subscribers._CLOSE_SECONDS", 0.05)
    hung = asyncio.Event()

    async def hang(one: BaseEvent) -> None:
        hung.set()
        await asyncio.Event().wait()

    telemetry.subscribe(hang)
    run(telemetry, task("1"))
    await asyncio.wait_for(hung.wait(), 5)
    run(telemetry, task("2"))
    assert telemetry.task_count()["completed"] == 2
    await telemetry.stop()
    assert "not delivered" in caplog.text


async def test_failing_enricher_does_not_lose_the_span(
    telemetry: TelemetryManager, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(one: BaseEvent) -> dict[str, Any]:
        raise LookupError("no")

    telemetry.register_span_enricher(broken)
    run(telemetry, task())
    assert len(telemetry.task_spans()) == 1
    assert len([record for record in caplog.records if "enricher" in record.message]) == 1


class WithStatistics:
    name = "pool"

    def __init__(self, *, fails: bool = False, is_async: bool = False) -> None:
        self.fails = fails
        self.is_async = is_async
        self.calls = 0

    def get_statistics(self) -> Any:
        self.calls += 1
        if self.fails and self.calls == 1:
            raise RuntimeError("not ready")
        statistics = {"pending": self.calls}
        return self._later(statistics) if self.is_async else statistics

    async def _later(self, statistics: dict[str, int]) -> dict[str, int]:
        return statistics


@pytest.mark.parametrize("is_async", [False, True])
async def test_statistics_are_polled_at_the_interval(
    telemetry: TelemetryManager, is_async: bool
) -> None:
    updates: list[ResourceUpdate] = []
    enough = asyncio.Event()

    def on_event(one: BaseEvent) -> None:
        if isinstance(one, ResourceUpdate):
            updates.append(one)
            if len(updates) >= 2:
                enough.set()

    telemetry.subscribe(on_event)
    backend = WithStatistics(is_async=is_async)
    telemetry.attach_backend(backend, "session.1", "pool", interval=0.01)
    await asyncio.wait_for(enough.wait(), 5)
    assert updates[0].attributes == {"pending": 1}
    assert updates[0].backend == "pool"
    assert updates[0].cpu_percent is not None
    assert (updates[0].memory_bytes or 0) > 0
    (latest,) = telemetry.summary()["resources"].values()
    assert latest["statistics"]["pending"] >= 2
    await telemetry.stop()
    names = [running.get_name() for running in asyncio.all_tasks()]
    assert "rhapsody-telemetry-resources" not in names


async def test_failing_statistics_are_polled_again(
    telemetry: TelemetryManager, caplog: pytest.LogCaptureFixture
) -> None:
    _, seen = collect(telemetry, "ResourceUpdate")
    telemetry.attach_backend(WithStatistics(fails=True), interval=0.01)
    await asyncio.wait_for(seen.wait(), 5)
    assert len([r for r in caplog.records if "get_statistics() of backend" in r.message]) == 1


async def test_backend_without_statistics_has_the_use_of_the_node(
    telemetry: TelemetryManager,
) -> None:
    updates: list[ResourceUpdate] = []
    seen = asyncio.Event()

    def on_event(one: BaseEvent) -> None:
        if isinstance(one, ResourceUpdate):
            updates.append(one)
            seen.set()

    telemetry.subscribe(on_event)
    telemetry.attach_backend(object(), session_id="s", backend_name="plain", interval=60)
    await asyncio.wait_for(seen.wait(), 20)
    assert (updates[0].backend, updates[0].attributes) == ("plain", {})
    assert updates[0].memory_percent is not None


async def test_intervals_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="checkpoint_interval must be a number above 0"):
        TelemetryManager("s", checkpoint_interval=0)
    with pytest.raises(ConfigurationError, match=r"interval must be .* got -1"):
        TelemetryManager("s").attach_backend(object(), interval=-1)


def test_loop_may_end_without_stop() -> None:
    async def main() -> TelemetryManager:
        manager = TelemetryManager("s")
        await manager.start()
        manager.subscribe(lambda one: None)
        manager.attach_backend(WithStatistics(), interval=60)
        run(manager, task())
        return manager

    manager = asyncio.run(main())
    assert manager.task_count()["completed"] == 1
