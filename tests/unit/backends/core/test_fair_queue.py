import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.allocation import Node
from rhapsody.backends.core.accounts import PLAIN, Account, Capacity, Request
from rhapsody.backends.core.aged_queue import AGING_SECONDS
from rhapsody.backends.core.fair_queue import FairQueue
from rhapsody.gpus import PARTS, GpuLedger


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_on(
    cpus: int, gpus: int = 0, clock: Callable[[], float] | None = None, gone: Any = frozenset()
) -> tuple[FairQueue[Any], Account]:
    account = Account([Capacity(Node("a", cpus, tuple(range(gpus))))], GpuLedger())
    return FairQueue(account, gone.__contains__, clock or Clock()), account


def taken(queue: FairQueue[Any]) -> list[Any]:
    return [entry[0] for entry in iter(queue.take, None)]


def test_tasks_start_in_order_of_arrival() -> None:
    queue, _ = queue_on(cpus=10)
    queue.add_plain(["a", "b"])
    queue.add("c", Request(cpus=2))
    queue.add_plain(["d"])
    assert taken(queue) == ["a", "b", "c", "d"]
    assert len(queue) == 0


def test_higher_priority_starts_first() -> None:
    queue, _ = queue_on(cpus=10)
    queue.add_plain(["normal"])
    queue.add("low", PLAIN, -1)
    queue.add("high", PLAIN, 5)
    queue.add("higher", Request(cpus=2), 6)
    assert taken(queue) == ["higher", "high", "normal", "low"]


def test_waiting_task_overtakes_new_ones_of_higher_priority() -> None:
    clock = Clock()
    queue, _ = queue_on(cpus=10, clock=clock)
    queue.add("old", PLAIN, 0)
    clock.now = 2 * AGING_SECONDS + 1
    queue.add("new", PLAIN, 2)
    assert taken(queue) == ["old", "new"]


def test_smaller_task_overtakes_one_that_does_not_fit() -> None:
    queue, account = queue_on(cpus=2)
    running = account.take(PLAIN)
    assert running is not None
    queue.add("large", Request(cpus=2))
    queue.add_plain(["small"])
    assert taken(queue) == ["small"]


def test_cancelled_tasks_are_dropped() -> None:
    gone = {"first", "large"}
    queue, _ = queue_on(cpus=1, gone=gone)
    queue.add_plain(["first", "second"])
    queue.add("large", Request(cpus=9))
    assert taken(queue) == ["second"]
    gone.add("second")
    assert taken(queue) == []
    assert len(queue) == 0


def test_hold_ends_when_its_task_is_cancelled() -> None:
    gone: set[str] = set()
    queue, account = queue_on(cpus=2, gone=gone)
    running = account.take(PLAIN)
    assert running is not None
    queue.add("large", Request(cpus=2))
    queue.add_plain(["small"] * 20)
    for _ in range(20):
        if (entry := queue.take()) is None:
            break
        account.release(entry[1])
    assert queue.take() is None  # held
    gone.add("large")
    assert queue.take() is not None


def test_clear_returns_waiting_tasks_in_order() -> None:
    queue, _ = queue_on(cpus=2, gone={"b"})
    queue.add_plain(["a", "b"])
    queue.add("c", Request(cpus=2), 3)
    assert queue.clear() == ["c", "a"]
    assert queue.take() is None
    assert len(queue) == 0


def test_many_different_requests_do_not_slow_each_other() -> None:
    queue, account = queue_on(cpus=1)
    for number in range(3000):
        queue.add(number, Request(cpus=1, memory=number + 1))
    for number in range(3000):
        entry = queue.take()
        assert entry is not None
        assert entry[0] == number
        account.release(entry[1])


@dataclass(eq=False)
class Job:
    """A simulated task."""

    number: int
    request: Request
    arrival: float
    seconds: float
    priority: int = 0
    started: float | None = None

    def __lt__(self, other: "Job") -> bool:
        return self.number < other.number


def simulate(jobs: list[Job], cpus: int, gpus: int = 0) -> tuple[list[Job], float]:
    """Run jobs on one node; return them, and the mean share of the CPUs that was busy."""
    clock = Clock()
    queue, account = queue_on(cpus, gpus, clock)
    arrivals = sorted(jobs, key=lambda job: job.arrival)
    running: list[tuple[float, Job, Any]] = []
    busy, index = 0.0, 0
    while index < len(arrivals) or running or len(queue):
        times = [running[0][0]] if running else []
        times += [arrivals[index].arrival] if index < len(arrivals) else []
        assert times, f"{len(queue)} tasks wait on an idle account"
        clock.now = max(clock.now, min(times))
        while running and running[0][0] <= clock.now:
            account.release(heapq.heappop(running)[2])
        while index < len(arrivals) and arrivals[index].arrival <= clock.now:
            queue.add(arrivals[index], arrivals[index].request, arrivals[index].priority)
            index += 1
        while (entry := queue.take()) is not None:
            job, grant = entry
            job.started = clock.now
            busy += job.seconds * job.request.cpus
            heapq.heappush(running, (clock.now + job.seconds, job, grant))
    return jobs, busy / max(clock.now * cpus, 1)


def stream(count: int, request: Request, every: float, seconds: float, **fields: Any) -> list[Job]:
    return [Job(i, request, i * every, seconds, **fields) for i in range(count)]


@pytest.mark.parametrize("large", [Request(cpus=8), Request(cpus=8, exclusive=True)])
def test_stream_of_small_tasks_does_not_starve_a_large_one(large: Request) -> None:
    small = stream(5000, PLAIN, every=0.125, seconds=1.0)  # as much as 8 CPUs can do
    wanted = Job(10**6, large, 10.0, 1.0)
    simulate([*small, wanted], cpus=8)
    assert wanted.started is not None
    assert wanted.started - wanted.arrival < 10


def test_stream_of_large_tasks_does_not_starve_small_ones() -> None:
    large = stream(500, Request(cpus=8), every=1.0, seconds=1.0)
    small = [Job(10**6 + i, PLAIN, 20.0 + i, 1.0) for i in range(100)]
    simulate([*large, *small], cpus=8)
    assert max((job.started or 0) - job.arrival for job in small) < 30


def test_tasks_for_the_cpu_do_not_wait_for_gpus() -> None:
    hours = [Job(i, Request(gpu_parts=PARTS), 0.0, 3600.0) for i in range(4)]
    plain = stream(500, PLAIN, every=0.5, seconds=1.0)
    for job in plain:
        job.number += 100
    simulate([*hours, *plain], cpus=8, gpus=2)
    assert max((job.started or 0) - job.arrival for job in plain) < 2


def test_flood_of_high_priority_does_not_starve_low_priority() -> None:
    flood = stream(4000, PLAIN, every=0.1, seconds=1.0, priority=2)
    low = Job(10**6, PLAIN, 1.0, 1.0, priority=-1)
    simulate([*flood, low], cpus=8)
    assert low.started is not None
    # Its age makes up for three steps, and then the tasks before it are done.
    assert low.started - low.arrival < 3 * AGING_SECONDS * 1.5


def test_mixed_load_keeps_cpus_busy() -> None:
    random.seed(4)
    jobs = [
        Job(i, Request(cpus=random.choice([1, 1, 1, 2, 4, 8])), 0.0, random.uniform(0.5, 2))
        for i in range(2000)
    ]
    _, busy = simulate(jobs, cpus=8)
    assert busy > 0.8


JOBS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from([0, PARTS // 2, PARTS, 2 * PARTS]),
        st.floats(0, 50),
        st.floats(0.1, 20),
        st.integers(-3, 3),
        st.booleans(),
    ),
    max_size=40,
)


@given(JOBS)
def test_every_task_starts_once(drawn: list[tuple[int, int, float, float, int, bool]]) -> None:
    jobs = [
        Job(i, Request(cpus, parts, exclusive=alone), arrival, seconds, priority)
        for i, (cpus, parts, arrival, seconds, priority, alone) in enumerate(drawn)
    ]
    simulate(jobs, cpus=4, gpus=2)
    assert all(job.started is not None and job.started >= job.arrival for job in jobs)


def test_tasks_that_wait_for_gpus_are_noted_in_the_ledger() -> None:
    ledger = GpuLedger()
    account = Account([Capacity(Node("a", 4, (0,)))], ledger)
    queue: FairQueue[str] = FairQueue(account, frozenset().__contains__, Clock())
    ledger.take([("a", 0)])
    queue.add("waits", Request(gpu_parts=PARTS))
    assert taken(queue) == []
    assert ledger.is_short
    ledger.release([("a", 0)])
    assert taken(queue) == ["waits"]
    assert not ledger.is_short


def test_tasks_that_are_dropped_wait_for_no_gpus() -> None:
    ledger = GpuLedger()
    account = Account([Capacity(Node("a", 4, (0,)))], ledger)
    queue: FairQueue[str] = FairQueue(account, frozenset().__contains__, Clock())
    ledger.take([("a", 0)])
    queue.add("waits", Request(gpu_parts=PARTS))
    assert taken(queue) == []
    queue.clear()
    assert not ledger.is_short
