"""How many calls a worker may be given, and how its end is described."""

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE, WINDOW, WorkerState

ASYNC_LIMIT = 8


@pytest.fixture
def worker() -> WorkerState:
    return WorkerState(1, Node("a", 4), ASYNC_LIMIT)


def work() -> Work:
    return Work({"uid": "task", "function": print}, Attachment(ignore), "")


def test_new_worker_may_hold_one_exclusive_call(worker: WorkerState) -> None:
    assert worker.free_slots(EXCLUSIVE) == 1
    worker.add_call(work())
    assert worker.free_slots(EXCLUSIVE) == 0


def test_concurrent_calls_are_limited_by_the_async_limit(worker: WorkerState) -> None:
    for held in range(ASYNC_LIMIT):
        assert worker.free_slots(CONCURRENT) == ASYNC_LIMIT - held
        worker.add_call(work())
    assert worker.free_slots(CONCURRENT) == 0


def test_window_grows_with_quick_calls_up_to_its_limit(worker: WorkerState) -> None:
    windows = []
    for _ in range(10):
        worker.adapt_window(1, 1e-4)
        windows.append(worker.free_slots(EXCLUSIVE))
    assert windows == sorted(windows)
    assert windows[0] == 2  # at most doubled at a time
    assert windows[-1] == WINDOW


def test_calls_of_tens_of_milliseconds_prefetch_one_call(worker: WorkerState) -> None:
    for _ in range(5):
        worker.adapt_window(1, 0.05)
    assert worker.free_slots(EXCLUSIVE) == 2


def test_long_calls_prefetch_nothing(worker: WorkerState) -> None:
    for _ in range(5):
        worker.adapt_window(1, 1.0)
    assert worker.free_slots(EXCLUSIVE) == 1


def test_few_free_slots_wait_until_a_message_is_worth_sending(worker: WorkerState) -> None:
    for _ in range(10):
        worker.adapt_window(1, 1e-4)
    ids = [worker.add_call(work()) for _ in range(WINDOW)]
    for call_id in ids[:15]:
        worker.remove_call(call_id)
    assert worker.free_slots(EXCLUSIVE) == 0
    worker.remove_call(ids[15])
    assert worker.free_slots(EXCLUSIVE) == 16


def test_stalled_worker_gets_a_window_of_one(worker: WorkerState) -> None:
    for _ in range(10):
        worker.adapt_window(1, 1e-4)
    worker.mark_stalled()
    assert worker.stalled
    assert worker.free_slots(EXCLUSIVE) == 1


def test_waiting_calls_are_those_not_known_to_run(worker: WorkerState) -> None:
    ids = [worker.add_call(work()) for _ in range(4)]
    worker.mode = EXCLUSIVE
    assert worker.waiting_calls == 3
    worker.mode = CONCURRENT
    worker.running.add(ids[0])
    assert worker.waiting_calls == 3
    worker.remove_call(ids[0])
    assert worker.waiting_calls == 3


def test_removing_an_unknown_call_returns_none(worker: WorkerState) -> None:
    task = work()
    call_id = worker.add_call(task)
    assert worker.remove_call(call_id) is task
    assert worker.remove_call(call_id) is None


@pytest.mark.parametrize("state", ["retiring", "is_disconnected", "has_exited"])
def test_ending_worker_is_not_ready(worker: WorkerState, state: str) -> None:
    assert not worker.is_ready
    worker.pid = 1000
    assert worker.is_ready
    setattr(worker, state, True)
    assert not worker.is_ready


@pytest.mark.parametrize(
    ("pid", "code", "description"),
    [
        (1000, -9, "was ended by SIGKILL"),
        (1000, -11, "was ended by SIGSEGV"),
        (1000, 3, "ended with exit code 3"),
        (1000, -200, "ended with exit code -200"),
        (1000, None, "was lost with the agent of its node"),
        (0, None, "could not be started"),
    ],
)
def test_exit_description(
    worker: WorkerState, pid: int, code: int | None, description: str
) -> None:
    worker.pid, worker.exit_code = pid, code
    assert worker.exit_description == description
