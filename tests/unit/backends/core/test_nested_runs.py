from queue import SimpleQueue
from typing import Any

from rhapsody.backends.core.nested_runs import (
    Once,
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
    call = Once(lambda: made.append(1))
    call()
    call()
    assert made == [1]
