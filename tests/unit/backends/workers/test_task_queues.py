"""The order of waiting tasks, by mode and over both modes."""

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.task_queues import TaskQueues
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE


@pytest.fixture
def queues() -> TaskQueues:
    return TaskQueues()


def works(count: int) -> list[Work]:
    owner = Attachment(ignore)
    return [Work({"uid": f"task.{n}", "function": print}, owner, "") for n in range(count)]


def test_tasks_are_taken_in_order_of_arrival(queues: TaskQueues) -> None:
    first, second, third = works(3)
    queues.add([(first, EXCLUSIVE), (second, CONCURRENT), (third, EXCLUSIVE)])
    assert len(queues) == 3
    assert queues.take(EXCLUSIVE, 5) == [first, third]
    assert queues.take(CONCURRENT, 5) == [second]
    assert len(queues) == 0


def test_take_is_limited(queues: TaskQueues) -> None:
    tasks = works(3)
    queues.add((work, EXCLUSIVE) for work in tasks)
    assert queues.take(EXCLUSIVE, 2) == tasks[:2]
    assert queues.take(EXCLUSIVE, 0) == []


def test_next_mode_follows_the_oldest_task(queues: TaskQueues) -> None:
    first, second, third = works(3)
    queues.add([(first, CONCURRENT), (second, EXCLUSIVE), (third, CONCURRENT)])
    assert queues.next_mode() == CONCURRENT
    queues.take(CONCURRENT, 1)
    assert queues.next_mode() == EXCLUSIVE
    queues.take(EXCLUSIVE, 1)
    assert queues.next_mode() == CONCURRENT
    queues.take(CONCURRENT, 1)
    assert queues.next_mode() is None


def test_removed_task_is_skipped(queues: TaskQueues) -> None:
    first, second = works(2)
    queues.add([(first, EXCLUSIVE), (second, CONCURRENT)])
    assert queues.remove(first)
    assert not queues.remove(first)
    assert queues.next_mode() == CONCURRENT
    assert queues.take(EXCLUSIVE, 5) == []


def test_returned_task_is_taken_first(queues: TaskQueues) -> None:
    first, second, third = works(3)
    queues.add([(first, EXCLUSIVE), (second, EXCLUSIVE), (third, EXCLUSIVE)])
    queues.put_back([(work, EXCLUSIVE) for work in queues.take(EXCLUSIVE, 2)])
    assert queues.take(EXCLUSIVE, 5) == [first, second, third]


def test_clear_returns_all_tasks(queues: TaskQueues) -> None:
    first, second = works(2)
    queues.add([(first, EXCLUSIVE), (second, CONCURRENT)])
    assert queues.clear() == [first, second]
    assert len(queues) == 0
    assert queues.next_mode() is None


def test_task_of_higher_priority_is_taken_first(queues: TaskQueues) -> None:
    plain, urgent, later = works(3)
    urgent.task["priority"] = 2
    queues.add([(plain, EXCLUSIVE), (urgent, CONCURRENT), (later, EXCLUSIVE)])
    assert queues.next_mode() == CONCURRENT
    queues.take(CONCURRENT, 1)
    assert queues.take(EXCLUSIVE, 2) == [plain, later]
