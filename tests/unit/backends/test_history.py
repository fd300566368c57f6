"""What a backend notes of its owner's tasks."""

from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.backends.attachment import Attachment, ignore
from rhapsody.backends.history import REASONS, RECORDS, TaskHistory, percentile
from rhapsody.backends.work import Work
from tests.support.held import HeldBackend
from tests.support.waiting import until


def work(uid: str = "a", **task: Any) -> Work:
    return Work({"uid": uid, "function": len, **task}, Attachment(ignore), "")


def ended(count: int, state: str = "DONE", error: Exception | None = None) -> TaskHistory:
    history = TaskHistory()
    history.submitted(count)
    for number in range(count):
        history.ended(work(f"task.{number}"), state, error)
    return history


def test_a_task_is_counted_in_one_state_at_a_time() -> None:
    one = work()
    history = one.attachment.history
    history.submitted(1)
    assert history.counts == {"PENDING": 1}
    one.start()
    assert history.counts == {"RUNNING": 1}
    one.end("DONE", None)
    assert history.counts == {"DONE": 1}
    assert history.number_ended == 1


def test_a_record_says_what_ran_where_and_when() -> None:
    one = work("b")
    one.place = "node 1"
    one.start()
    one.end("DONE", None)
    (record,) = one.attachment.history.records()
    assert record[:4] == ("b", "len", "node 1", "DONE")
    assert record.started is not None
    assert record.ended is not None
    assert record.submitted <= record.started <= record.ended
    assert record.latency == pytest.approx((record.waiting or 0) + (record.running or 0))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"function": len, "_tel_executable": "simulate"}, "simulate"),
        ({"function": None, "executable": "/bin/date"}, "/bin/date"),
        ({"function": None, "prompt": "Why?"}, "prompt"),
    ],
)
def test_a_record_has_the_name_of_what_ran(task: dict[str, Any], name: str) -> None:
    one = work(**task)
    one.end("DONE", None)
    assert one.attachment.history.records()[0].name == name


def test_only_the_latest_are_kept_and_all_are_counted() -> None:
    history = ended(RECORDS + 5)
    assert history.counts == {"DONE": RECORDS + 5}
    assert [r.uid for r in history.records()][::RECORDS] == ["task.5"]
    assert [r.uid for r in history.records(2)] == [f"task.{RECORDS + n}" for n in (3, 4)]


def test_failures_of_one_reason_are_counted_together_whatever_the_uid() -> None:
    history = TaskHistory()
    for uid in ("x.1", "x.2"):
        history.ended(work(uid), "FAILED", ValueError(f"{uid} is too large"))
    history.ended(work("y"), "FAILED", None)
    first, second = history.failures()
    assert first == ("ValueError: <uid> is too large", 2, "x.1")
    assert second == ("no reason was given", 1, "y")


def test_a_flood_of_reasons_is_bounded_and_none_is_lost() -> None:
    history = TaskHistory()
    for number in range(REASONS + 50):
        history.ended(work(), "FAILED", ValueError(f"number {number}"))
    failures = history.failures()
    assert len(failures) == REASONS + 1
    assert failures[0][:2] == ("other reasons", 50)


def test_percentiles_are_values_that_occurred_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == 7


def test_latencies_of_no_tasks_are_only_a_count() -> None:
    assert TaskHistory().latency_seconds() == {"count": 0}
    figures = ended(10).latency_seconds()
    assert figures["count"] == 10
    assert 0 <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]


async def test_a_backend_notes_what_becomes_of_its_tasks() -> None:
    async with ConcurrentExecutionBackend() as backend:
        backend.register_callback(lambda task, state: None)
        tasks: list[dict[str, Any]] = [
            {"uid": "good", "function": len, "args": ["abc"]},
            {"uid": "bad", "function": int, "args": ["abc"]},
            {"uid": "refused"},
        ]
        await backend.submit_tasks(tasks)
        await until(lambda: backend.history.number_ended == 3)
        states = {record.uid: record.state for record in backend.history.records()}
        assert states == {"good": "DONE", "bad": "FAILED", "refused": "FAILED"}
        assert backend.history.counts == {"DONE": 1, "FAILED": 2}
        assert any("invalid literal" in f.reason for f in backend.history.failures())


async def test_tasks_that_have_not_ended_are_active() -> None:
    held = HeldBackend()
    await held.submit_tasks([{"uid": "one", "prompt": "?"}])
    await held.has_begun()
    (record,) = held.active_records(held.history)
    assert record[:4] == ("one", "prompt", "", "RUNNING")
    assert (record.ended, record.latency, record.running) == (None, None, None)
    await held.shutdown()
    assert held.active_records(held.history) == []
    assert held.history.counts == {"CANCELED": 1}


async def test_each_owner_has_a_history_of_its_own() -> None:
    backend = NoopExecutionBackend()
    await backend.submit_tasks([{"uid": "1", "function": len}])
    before = backend.history
    async with Session([backend]) as session:
        assert backend.history.counts == {}
        await session.submit_tasks([ComputeTask(function=len, uid="2")])
    assert [record.uid for record in backend.history.records()] == ["2"]
    assert [record.uid for record in before.records()] == ["1"]


async def test_a_task_answered_beside_the_owners_own_is_noted_too() -> None:
    backend = NoopExecutionBackend()
    await backend.answer({"prompt": "Why?"})
    assert backend.history.counts == {"DONE": 1}
