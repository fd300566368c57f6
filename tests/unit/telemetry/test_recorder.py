"""The recorder: spans of tasks from their events, enrichers, errors."""

from typing import Any

import pytest

from rhapsody.telemetry.events import (
    BaseEvent,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskStarted,
    TaskSubmitted,
    make_event,
)
from rhapsody.telemetry.recorder import Recorder
from rhapsody.telemetry.spans import Span, SpanTracer


def event(cls: type[BaseEvent], at: float, uid: str = "t", **fields: Any) -> BaseEvent:
    return make_event(cls, session_id="s", backend="local", task_id=uid, event_time=at, **fields)


@pytest.fixture
def ended() -> list[Span]:
    """The spans that have ended, in order."""
    return []


@pytest.fixture
def recorder(ended: list[Span]) -> Recorder:
    made = Recorder(10, ended.append)
    made.start(SpanTracer(made.keep), "s")
    return made


def record(recorder: Recorder, *events: BaseEvent, scope: Any = None) -> None:
    for one in events:
        recorder.record(one, scope)


def test_ended_task_has_a_span_from_start_to_end(recorder: Recorder, ended: list[Span]) -> None:
    record(
        recorder,
        event(TaskCreated, 1.0),
        event(TaskSubmitted, 2.0),
        event(TaskStarted, 3.0),
        event(TaskCompleted, 7.0),
    )
    [span] = ended
    assert (span.name, span.start_time, span.end_time) == ("task", 3_000_000_000, 7_000_000_000)
    assert span.attributes["status"] == "completed"
    assert span.attributes["wait_seconds"] == 2.0
    assert span.parent == recorder.root.context


def test_span_is_a_child_of_the_scope_of_the_first_event(
    recorder: Recorder, ended: list[Span]
) -> None:
    assert recorder.tracer is not None
    scope = recorder.tracer.start("workflow", recorder.root, {}, 0)
    record(recorder, event(TaskCreated, 1.0), scope=scope)
    record(recorder, event(TaskCompleted, 2.0))
    assert ended[0].parent == scope.context


@pytest.mark.parametrize(
    ("cls", "status", "fields"),
    [
        (TaskFailed, "failed", {"error_type": "ValueError"}),
        (TaskCanceled, "canceled", {}),
    ],
)
def test_span_has_the_outcome_of_its_task(
    recorder: Recorder,
    ended: list[Span],
    cls: type[BaseEvent],
    status: str,
    fields: dict[str, Any],
) -> None:
    record(recorder, event(TaskSubmitted, 1.0), event(cls, 2.0, **fields))
    assert ended[0].attributes["status"] == status
    assert ended[0].status.description == fields.get("error_type")


def test_enrichers_add_attributes_as_plain_values(recorder: Recorder, ended: list[Span]) -> None:
    recorder.enrichers.append(lambda one: {"kind": one.event_type, "list": [1]})
    record(recorder, event(TaskSubmitted, 1.0), event(TaskCompleted, 2.0))
    assert ended[0].attributes["kind"] == "TaskCompleted"
    assert ended[0].attributes["list"] == "[1]"


def test_failing_enricher_is_logged_once(
    recorder: Recorder, ended: list[Span], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(one: BaseEvent) -> dict[str, Any]:
        raise LookupError("no")

    recorder.enrichers.append(broken)
    record(recorder, event(TaskSubmitted, 1.0), event(TaskCompleted, 2.0))
    assert len(ended) == 1
    assert len(caplog.records) == 1


def test_recording_error_is_logged_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    bad = event(TaskSubmitted, 1.0, attributes=None)
    record(recorder, bad, bad)
    assert recorder.recorded == 2
    assert ["could not record" in record.message for record in caplog.records] == [True]


def test_close_ends_open_tasks_and_the_session(recorder: Recorder, ended: list[Span]) -> None:
    record(recorder, event(TaskSubmitted, 1.0))
    recorder.close()
    assert [span.name for span in ended] == ["task", "session"]
    assert ended[0].attributes["status"] == "unfinished"


def test_number_of_kept_spans_is_limited(recorder: Recorder, ended: list[Span]) -> None:
    for number in range(15):
        record(
            recorder, event(TaskSubmitted, 1.0, str(number)), event(TaskCompleted, 2.0, str(number))
        )
    assert len(ended) == 15
    assert [span.attributes["task_id"] for span in recorder.spans] == [
        str(number) for number in range(5, 15)
    ]


def test_recorder_without_start_counts_but_has_no_spans(ended: list[Span]) -> None:
    recorder = Recorder(10, ended.append)
    record(recorder, event(TaskSubmitted, 1.0), event(TaskCompleted, 2.0))
    assert recorder.counters.counts()["completed"] == 1
    assert ended == []
