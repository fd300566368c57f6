"""CPUs that are reserved for tasks beside the workers."""

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.reservations import Reservations


@pytest.fixture
def works() -> list[Work]:
    attachment = Attachment(ignore)
    return [Work({"uid": f"task.{n}"}, attachment, "") for n in range(3)]


def test_tasks_get_their_cpus_in_order(works: list[Work]) -> None:
    started: list[int] = []
    reservations = Reservations(4)
    for n, cpus in enumerate((3, 1, 2)):
        reservations.add(works[n], cpus, lambda n=n: started.append(n))  # type: ignore[misc]
    assert reservations.next(busy=2) is None  # the second would fit
    for _ in range(2):
        start = reservations.next(busy=0)
        assert start is not None
        start()
    assert started == [0, 1]
    assert reservations.next(busy=0) is None
    assert reservations.end(works[0])
    assert reservations.next(busy=1) is not None


def test_workers_get_calls_on_free_cpus_while_no_task_waits(works: list[Work]) -> None:
    reservations = Reservations(2)
    assert not reservations
    reservations.add(works[0], 1, lambda: None)
    assert reservations
    assert reservations.any_waits
    assert not reservations.allow_another(busy=0)
    assert reservations.next(busy=1) is not None
    assert reservations.allow_another(busy=0)
    assert not reservations.allow_another(busy=1)
    assert reservations.end(works[0])
    assert not reservations
    assert reservations.allow_another(busy=1)


def test_only_waiting_tasks_are_dropped_and_others_ended_once(works: list[Work]) -> None:
    reservations = Reservations(2)
    reservations.add(works[0], 1, lambda: None)
    assert not reservations.end(works[0])
    assert reservations.drop(works[0])
    assert not reservations.drop(works[0])
    reservations.add(works[1], 2, lambda: None)
    assert reservations.next(busy=0) is not None
    assert not reservations.drop(works[1])
    assert [reservations.end(works[1]) for _ in range(2)] == [True, False]
