import threading
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from rhapsody.backends.core import nested_runs
from rhapsody.backends.core.nested_runs import (
    Attempts,
    Once,
    WaitQueue,
    helping_queue,
    in_task,
    is_in_task,
    run_calls_here,
)


def test_thread_that_runs_no_task_does_not_help() -> None:
    with run_calls_here(SimpleQueue()):
        assert helping_queue("pool") is None


def test_task_helps_while_it_waits() -> None:
    calls: SimpleQueue[Any] = SimpleQueue()
    with in_task("pool"):
        assert is_in_task()
        with run_calls_here(calls):
            assert helping_queue("pool") is calls
            with in_task("pool"):  # a task that it runs meanwhile
                assert helping_queue("pool") is None
            assert helping_queue("pool") is calls
        assert helping_queue("pool") is None
    assert not is_in_task()


def test_task_does_not_help_another_pool() -> None:
    with in_task("pool"), run_calls_here(SimpleQueue()):
        assert helping_queue("another pool") is None


def test_once_makes_its_call_once() -> None:
    made: list[int] = []

    def make() -> bool:
        made.append(1)
        return True

    call = Once(make)
    assert (call(), call()) == (True, False)
    assert made == [1]


class Task:
    """A task whose end is put into a queue."""

    def __init__(self, queue: WaitQueue, name: str, runs: bool = True) -> None:
        self.queue = queue
        self.name = name
        self.runs = runs
        self.made = 0

    def __call__(self) -> bool:
        self.made += 1
        if self.runs:
            self.queue.put_nowait(self.name)
        return self.runs


def test_waiting_thread_makes_the_calls_that_it_is_offered() -> None:
    queue = WaitQueue()
    first, second = Task(queue, "first"), Task(queue, "second")
    queue.offer(Attempts(), first)
    queue.offer(Attempts(), second)
    assert queue.get() == "first"
    assert (first.made, second.made) == (1, 0)
    assert queue.get() == "second"


def test_items_come_before_calls() -> None:
    queue = WaitQueue()
    task = Task(queue, "task")
    queue.offer(Attempts(), task)
    queue.put_nowait("item")
    assert queue.get() == "item"
    assert not task.made


def test_call_of_a_task_that_another_thread_runs_is_passed_over() -> None:
    queue = WaitQueue()
    queue.offer(Attempts(), Task(queue, "taken", runs=False))
    queue.offer(Attempts(), Task(queue, "task"))
    assert queue.get() == "task"


def test_next_call_waits_for_the_end_of_the_task_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested_runs, "REPORT_SECONDS", 60.0)
    queue, second = WaitQueue(), Attempts()
    ends: list[threading.Thread] = []
    events: list[str] = []

    def report_first() -> None:
        queue.offer(second, run_second)  # an offer is not the end of the first task
        events.append("the first task ends")
        queue.put_nowait("first")

    def run_first() -> bool:
        ends.append(threading.Thread(target=report_first))
        ends[0].start()
        return True

    def run_second() -> bool:
        events.append("the second task runs")
        return False

    queue.offer(Attempts(), run_first)
    queue.offer(second, run_second)
    assert queue.get() == "first"
    assert events == ["the first task ends"]
    ends[0].join()


def test_another_attempt_is_made_in_the_waiting_thread() -> None:
    attempts, queue = Attempts(), WaitQueue()

    def fail() -> bool:
        attempts.put(Task(queue, "task"))  # after a failure
        return True

    attempts.offer_to(queue)
    attempts.put(fail)
    assert queue.get() == "task"


def test_other_calls_are_made_in_the_pause_before_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nested_runs, "REPORT_SECONDS", 0.01)
    attempts, queue = Attempts(), WaitQueue()
    attempts.offer_to(queue)
    attempts.put(lambda: True)  # it fails
    queue.offer(Attempts(), Task(queue, "other"))
    assert queue.get() == "other"
    attempts.put(Task(queue, "task"))
    assert queue.get() == "task"


def test_calls_without_attempts_wait_for_no_end() -> None:
    queue = WaitQueue()
    queue.put(lambda: True)
    queue.put(lambda: True)
    queue.put(Task(queue, "item"))
    assert queue.get() == "item"


def test_attempts_are_offered_to_threads_that_wait_later() -> None:
    attempts, early, late = Attempts(), WaitQueue(0), WaitQueue()
    attempts.offer_to(early)
    attempts.withdraw_from(early)
    attempts.put(Task(late, "task"))
    attempts.offer_to(late)
    assert late.get() == "task"
    with pytest.raises(Empty):
        early.get_in_time()


def test_wait_with_a_timeout_lets_other_threads_begin_first() -> None:
    queue = WaitQueue(0.01)
    task = Task(queue, "task")
    queue.offer(Attempts(), task)
    with pytest.raises(Empty):
        queue.get_in_time()
    assert not task.made
    longer = WaitQueue(60)
    longer.offer(Attempts(), Task(longer, "task"))
    assert longer.get_in_time() == "task"


class Clock:
    """A clock that only a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(nested_runs, "monotonic", lambda: self.now)
        monkeypatch.setattr(nested_runs, "HEAD_START", 0.0)
        monkeypatch.setattr(nested_runs, "REPORT_SECONDS", 0.0)


def test_timeout_ends_a_wait_after_the_call_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    queue = WaitQueue(5)

    def run_past_the_deadline() -> bool:
        clock.now += 10
        queue.put_nowait("task")
        return True

    queue.offer(Attempts(), run_past_the_deadline)
    assert not queue.is_late
    assert queue.get_in_time() == "task"
    assert queue.is_late


def test_timeout_ends_a_wait_in_the_pause_before_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    queue = WaitQueue(5)

    def fail() -> bool:
        clock.now += 10
        return True

    queue.offer(Attempts(), fail)
    with pytest.raises(Empty):
        queue.get_in_time()
    assert clock.now == 110


def test_no_call_begins_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    queue = WaitQueue(5)
    task = Task(queue, "task")
    queue.put(task)
    clock.now += 10
    queue.put_nowait("item")
    assert queue.get() == "item"
    queue.put_nowait("another item")
    assert queue.get() == "another item"
    assert not task.made
