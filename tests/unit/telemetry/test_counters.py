"""Counters: counts and durations by backend, from events."""

from typing import Any

import pytest

from rhapsody.telemetry.counters import TaskCounters
from rhapsody.telemetry.events import (
    BaseEvent,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskStarted,
    TaskSubmitted,
    define_event,
    make_event,
)


def event(cls: type[BaseEvent], uid: str = "t", backend: str = "b", **fields: Any) -> BaseEvent:
    return make_event(cls, session_id="s", backend=backend, task_id=uid, **fields)


def observe(counters: TaskCounters, *events: BaseEvent) -> None:
    for one in events:
        counters.observe(one, None)


@pytest.fixture
def counters() -> TaskCounters:
    return TaskCounters(max_open=100)


def test_task_is_counted_in_each_state(counters: TaskCounters) -> None:
    observe(counters, event(TaskCreated), event(TaskSubmitted), event(TaskStarted))
    assert counters.counts() == {
        "submitted": 1,
        "running": 1,
        "completed": 0,
        "failed": 0,
        "canceled": 0,
    }
    observe(counters, event(TaskCompleted))
    assert (counters.counts()["running"], counters.counts()["completed"]) == (0, 1)


def test_task_may_end_without_start(counters: TaskCounters) -> None:
    observe(counters, event(TaskSubmitted, "1"), event(TaskFailed, "1"), event(TaskCanceled, "2"))
    counts = counters.counts()
    assert (counts["running"], counts["failed"], counts["canceled"]) == (0, 1, 1)


def test_backend_of_submission_is_counted(counters: TaskCounters) -> None:
    observe(
        counters,
        event(TaskCreated, backend="default"),
        event(TaskSubmitted, backend="special"),
        event(TaskStarted, backend="default"),
        event(TaskCompleted, backend="default"),
    )
    assert counters.backends() == ["special"]
    assert counters.counts("special")["completed"] == 1


def test_percentiles_use_the_nearest_rank(counters: TaskCounters) -> None:
    for number in range(1, 101):
        seconds = float(number)
        observe(counters, event(TaskCompleted, str(number), duration_seconds=seconds))
    figures = counters.durations()
    assert (figures["count"], figures["min_seconds"], figures["max_seconds"]) == (100, 1, 100)
    assert figures["mean_seconds"] == pytest.approx(50.5)
    assert [figures[f"p{p}_seconds"] for p in (50, 95, 99)] == [50, 95, 99]


def test_canceled_tasks_have_no_duration(counters: TaskCounters) -> None:
    observe(counters, event(TaskCanceled, duration_seconds=9.0))
    assert counters.durations() == {}


def test_oldest_open_task_is_forgotten_beyond_the_limit() -> None:
    counters = TaskCounters(max_open=2)
    for uid in "abc":
        observe(counters, event(TaskSubmitted, uid), event(TaskStarted, uid))
    assert counters.counts()["running"] == 2
    assert [task.task_id for task in counters.take_unfinished()] == ["b", "c"]
    assert counters.counts()["running"] == 0


def test_event_of_other_class_opens_no_task(counters: TaskCounters) -> None:
    late = define_event("tests.Late")
    assert counters.observe(event(late, "gone"), None) is None
    assert list(counters.take_unfinished()) == []


def test_unsubmitted_task_is_not_unfinished(counters: TaskCounters) -> None:
    observe(counters, event(TaskCreated, "block.1"), event(TaskSubmitted, "task.1"))
    assert [task.task_id for task in counters.take_unfinished()] == ["task.1"]


def test_attempts_count_as_one_task(counters: TaskCounters) -> None:
    attempt = (event(TaskSubmitted), event(TaskStarted))
    observe(counters, event(TaskCreated), *attempt, *attempt, event(TaskCompleted))
    assert counters.metrics()["tasks_submitted"] == 1
    assert counters.metrics()["tasks_started"] == 1
    assert counters.counts()["completed"] == 1
