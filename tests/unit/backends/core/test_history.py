from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.history import REASONS, RECORDS, TaskHistory, percentile
from rhapsody.backends.core.work import Work
from rhapsody.backends.protocol import Attempt
from tests.support.held import HeldBackend
from tests.support.waiting import until


def work(uid: str = "a", **task: Any) -> Work:
    return Work({"uid": uid, "function": len, **task}, Attachment(ignore), "")


def ended(count: int, state: str = "DONE", error: Exception | None = None) -> TaskHistory:
    history = TaskHistory()
    history.count_submitted(count)
    for number in range(count):
        history.record_end(work(f"task.{number}"), state, error)
    return history


def test_task_is_counted_in_one_state() -> None:
    one = work()
    history = one.history
    history.count_submitted(1)
    assert history.counts == {"PENDING": 1}
    one.mark_running()
    assert history.counts == {"RUNNING": 1}
    one.mark_ended("DONE", None)
    assert history.counts == {"DONE": 1}
    assert history.number_ended == 1


def test_record_has_name_place_and_times() -> None:
    one = work("b")
    one.place = "node 1"
    one.mark_running()
    one.mark_ended("DONE", None)
    (record,) = one.history.records()
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
def test_record_has_name_of_each_kind(task: dict[str, Any], name: str) -> None:
    one = work(**task)
    one.mark_ended("DONE", None)
    assert one.history.records()[0].name == name


def test_records_are_bounded_and_counts_are_not() -> None:
    history = ended(RECORDS + 5)
    assert history.counts == {"DONE": RECORDS + 5}
    assert [r.uid for r in history.records()][::RECORDS] == ["task.5"]
    assert [r.uid for r in history.records(2)] == [f"task.{RECORDS + n}" for n in (3, 4)]


def test_records_keep_their_order_and_their_times() -> None:
    history = ended(RECORDS + 5)
    started = [record.started for record in history.records(3)]
    assert started == [None] * 3
    submitted = [record.submitted for record in history.records()]
    assert submitted == sorted(submitted)


def test_more_records_are_kept_from_then_on() -> None:
    history = ended(RECORDS + 5)
    history.keep(RECORDS + 10)
    history.keep(1)
    history.count_submitted(2)
    for uid in ("later.1", "later.2"):
        history.record_end(work(uid), "DONE", None)
    records = history.records()
    assert len(records) == RECORDS + 2
    assert [records[0].uid, records[-1].uid] == ["task.5", "later.2"]
    ends = [record.ended or 0.0 for record in records]
    assert ends == sorted(ends)


def test_failures_are_grouped_by_reason_without_uid() -> None:
    history = TaskHistory()
    for uid in ("x.1", "x.2"):
        history.record_end(work(uid), "FAILED", ValueError(f"{uid} is too large"))
    history.record_end(work("y"), "FAILED", None)
    first, second = history.failures()
    assert first[:3] == ("ValueError: <uid> is too large", 2, "x.1")
    assert second[:3] == ("no reason was given", 1, "y")


def test_reasons_are_bounded() -> None:
    history = TaskHistory()
    for number in range(REASONS + 50):
        history.record_end(work(), "FAILED", ValueError(f"number {number}"))
    failures = history.failures()
    assert len(failures) == REASONS + 1
    assert failures[0][:2] == ("other reasons", 50)


def test_percentile_uses_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == 7


def test_latency_without_tasks_is_only_a_count() -> None:
    assert TaskHistory().latency_seconds() == {"count": 0}
    figures = ended(10).latency_seconds()
    assert figures["count"] == 10
    assert 0 <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]


async def test_backend_records_its_tasks() -> None:
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


async def test_unfinished_tasks_are_active() -> None:
    held = HeldBackend()
    await held.submit_tasks([{"uid": "one", "prompt": "?"}])
    await held.wait_entered()
    (record,) = held.active_records(held.history)
    assert record[:4] == ("one", "prompt", "", "RUNNING")
    assert (record.ended, record.latency, record.running) == (None, None, None)
    await held.shutdown()
    assert held.active_records(held.history) == []
    assert held.history.counts == {"CANCELED": 1}


async def test_each_owner_has_its_own_history() -> None:
    backend = NoopExecutionBackend()
    await backend.submit_tasks([{"uid": "1", "function": len}])
    before = backend.history
    async with Session([backend]) as session:
        assert backend.history.counts == {}
        await session.submit_tasks([ComputeTask(function=len, uid="2")])
    assert [record.uid for record in backend.history.records()] == ["2"]
    assert [record.uid for record in before.records()] == ["1"]


async def test_run_one_is_recorded() -> None:
    backend = NoopExecutionBackend()
    await backend.run_one({"prompt": "Why?"})
    assert backend.history.counts == {"DONE": 1}


def attempt(number: int, is_last: bool = False) -> Work:
    return work("t", _attempt=Attempt("t", number, is_last))


def test_failed_attempt_is_taken_back_when_its_task_is_repeated() -> None:
    history = TaskHistory()
    first, second = attempt(1), attempt(2)
    history.count_submitted(1)
    history.record_end(first, "FAILED", ValueError("no"))
    assert history.counts == {"FAILED": 1}
    assert [record.state for record in history.records()] == ["FAILED"]
    history.count_submitted(1)
    history.take_back(Attempt("t", 2, False))
    assert history.counts == {"PENDING": 1}
    assert history.failures() == []
    assert history.records() == []
    history.record_end(second, "DONE", None)
    assert history.counts == {"DONE": 1}
    assert [record.state for record in history.records()] == ["DONE"]


def test_other_tasks_that_failed_for_the_same_reason_stay_counted() -> None:
    history = ended(1, "FAILED", ValueError("no"))
    history.count_submitted(1)
    history.record_end(attempt(1), "FAILED", ValueError("no"))
    assert history.failures()[0].number == 2
    history.take_back(Attempt("t", 2, False))
    assert history.failures()[0].number == 1


def test_task_that_is_cancelled_after_a_failed_attempt_is_cancelled_once() -> None:
    failed = attempt(1)
    history = failed.history
    history.count_submitted(1)
    history.record_end(failed, "FAILED", ValueError("no"))
    for _ in range(2):
        history.record_cancelled_pause("t")
        assert history.counts == {"CANCELED": 1}
    assert history.failures() == []
    assert [(record.state, record.reason) for record in history.records()] == [("CANCELED", "")]


def test_attempt_after_one_that_was_never_recorded_takes_nothing_back() -> None:
    history = ended(1, "FAILED", ValueError("no"))
    history.take_back(Attempt("other", 2, False))
    assert history.counts == {"FAILED": 1}
