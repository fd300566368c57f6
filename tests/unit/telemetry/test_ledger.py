"""The ledger: counts and durations by backend, from events."""

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
    define_event,
    make_event,
)
from rhapsody.telemetry.ledger import TaskLedger


def event(cls: type[BaseEvent], uid: str = "t", backend: str = "b", **fields: Any) -> BaseEvent:
    return make_event(cls, session_id="s", backend=backend, task_id=uid, **fields)


def observe(ledger: TaskLedger, *events: BaseEvent) -> None:
    for one in events:
        ledger.observe(one, None)


@pytest.fixture
def ledger() -> TaskLedger:
    return TaskLedger(max_open=100)


def test_a_task_is_counted_in_each_state_it_passes(ledger: TaskLedger) -> None:
    observe(ledger, event(TaskCreated), event(TaskSubmitted), event(TaskStarted))
    assert ledger.counts() == {
        "submitted": 1,
        "running": 1,
        "completed": 0,
        "failed": 0,
        "canceled": 0,
    }
    observe(ledger, event(TaskCompleted))
    assert (ledger.counts()["running"], ledger.counts()["completed"]) == (0, 1)


def test_a_task_may_end_without_having_been_seen_to_run(ledger: TaskLedger) -> None:
    observe(ledger, event(TaskSubmitted, "1"), event(TaskFailed, "1"), event(TaskCanceled, "2"))
    counts = ledger.counts()
    assert (counts["running"], counts["failed"], counts["canceled"]) == (0, 1, 1)


def test_the_backend_is_the_one_a_task_was_submitted_to(ledger: TaskLedger) -> None:
    observe(
        ledger,
        event(TaskCreated, backend="default"),
        event(TaskSubmitted, backend="special"),
        event(TaskStarted, backend="default"),
        event(TaskCompleted, backend="default"),
    )
    assert ledger.backends() == ["special"]
    assert ledger.counts("special")["completed"] == 1


def test_durations_have_percentiles_by_nearest_rank(ledger: TaskLedger) -> None:
    for number in range(1, 101):
        seconds = float(number)
        observe(ledger, event(TaskCompleted, str(number), duration_seconds=seconds))
    figures = ledger.durations()
    assert (figures["count"], figures["min_seconds"], figures["max_seconds"]) == (100, 1, 100)
    assert figures["mean_seconds"] == pytest.approx(50.5)
    assert [figures[f"p{p}_seconds"] for p in (50, 95, 99)] == [50, 95, 99]


def test_canceled_tasks_have_no_part_in_durations(ledger: TaskLedger) -> None:
    observe(ledger, event(TaskCanceled, duration_seconds=9.0))
    assert ledger.durations() == {}


def test_open_tasks_are_bounded_and_the_oldest_is_forgotten() -> None:
    ledger = TaskLedger(max_open=2)
    for uid in "abc":
        observe(ledger, event(TaskSubmitted, uid), event(TaskStarted, uid))
    assert ledger.counts()["running"] == 2
    assert [task.task_id for task in ledger.close_open()] == ["b", "c"]
    assert ledger.counts()["running"] == 0


def test_an_event_of_another_kind_opens_no_task(ledger: TaskLedger) -> None:
    late = define_event("tests.Late")
    assert ledger.observe(event(late, "gone"), None) is None
    assert list(ledger.close_open()) == []


def test_what_was_created_only_is_not_unfinished(ledger: TaskLedger) -> None:
    observe(ledger, event(TaskCreated, "block.1"), event(TaskSubmitted, "task.1"))
    assert [task.task_id for task in ledger.close_open()] == ["task.1"]
