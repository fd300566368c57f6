"""The Dragon backend's pool on allocations that are only described: up to 1,000 nodes.

Workers are simulated, and take no time: what is measured is what the head does for each task, and
whether that grows with the number of workers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of_call
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.attachment import Attachment, ignore
from rhapsody.backends.dragon_pool import Pool
from rhapsody.backends.dragon_runtime import Host, most_workers
from rhapsody.backends.dragon_seat import EXCLUSIVE, Seat
from rhapsody.backends.work import Work

NODES, CPUS = 1_000, 64
SMALL = [Host("node0", 3, is_head=True)]
LARGE = [Host(f"node{number}", CPUS, is_head=number == 0) for number in range(NODES)]
TASKS = 200_000
TOGETHER = 1_000
"""Tasks submitted at a time."""

LONE = 500
ROUNDS = 3


class Workers:
    """Simulated workers, and what becomes of tasks; a `Crew` and `Reports`."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.limit = most_workers("allocation", hosts, None)
        self.pool = Pool("allocation", hosts, self.limit, 64, 2.0, self, self)
        self.ended = 0
        self._numbers = itertools.count(1)
        self._new: deque[Seat] = deque()
        self._busy: deque[tuple[Seat, list[int]]] = deque()

    def number(self) -> int:
        return next(self._numbers)

    def start(self, seats: Sequence[Seat]) -> None:
        self._new += seats

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        self._busy.append((seat, [token for _, token in calls]))

    def tell(self, seat: Seat, *message: Any) -> None: ...
    def ping(self, seat: Seat) -> None: ...
    def kill(self, seat: Seat) -> None: ...
    def see_off(self, seat: Seat) -> None: ...
    def running(self, work: Work, place: str) -> None: ...

    def done(self, work: Work, fields: dict[str, Any]) -> None:
        self.ended += 1

    def failed(self, work: Work, error: BaseException) -> None:
        raise error

    def cancelled(self, work: Work) -> None: ...

    def submit(self, works: Sequence[Work]) -> None:
        self.pool.submit((work, EXCLUSIVE) for work in works)

    def welcome(self) -> None:
        """Have all that are new say hello."""
        while self._new:
            seat = self._new.popleft()
            hello = seat.number, seat.host.name
            self.pool.on_notes(seat.number, [(seat.number, wire.HELLO, 0.0, hello)])

    def step(self) -> None:
        """Have the worker that was sent something first end that."""
        seat, tokens = self._busy.popleft()
        self.pool.on_notes(seat.number, [(token, wire.VALUE, 1e-3, None) for token in tokens])

    def run(self, works: Sequence[Work]) -> None:
        """Run tasks to their ends, in messages of many."""
        for start in range(0, len(works), TOGETHER):
            self.submit(works[start : start + TOGETHER])
        self.welcome()
        while self._busy:
            self.step()

    def run_lone(self, works: Sequence[Work]) -> None:
        """Run one task at a time, while all other workers are idle."""
        for work in works:
            self.submit([work])
            self.step()

    def run_dynamically(self, works: Sequence[Work]) -> None:
        """Submit a task whenever one ends, while all workers are busy."""
        for work in works:
            self.step()
            self.submit([work])


def tasks(number: int) -> list[Work]:
    owner = Attachment(ignore)
    return [Work({"uid": f"task.{n}", "function": len}, owner, "/") for n in range(number)]


def seconds_each(hosts: Sequence[Host]) -> tuple[float, float, float]:
    """Return the head's time for a task among many, for a lone one, and for one after another."""
    workers = Workers(hosts)
    works, lone = tasks(TASKS), tasks(LONE)
    many = seconds_of_call(lambda: workers.run(works)) / TASKS
    alone = seconds_of_call(lambda: workers.run_lone(lone)) / LONE
    workers.submit(tasks(2 * workers.limit))
    dynamic = seconds_of_call(lambda: workers.run_dynamically(lone)) / LONE
    return many, alone, dynamic


async def measure() -> list[Figure]:
    """Return figures of a large allocation over those of a small one."""
    large, small = [], []
    for _ in range(ROUNDS):
        small.append(seconds_each(SMALL))
        large.append(seconds_each(LARGE))
    many, few = (most_workers("allocation", hosts, None) for hosts in (LARGE, SMALL))
    what = (
        f"one of {TASKS:,} tasks",
        "a lone task among idle workers",
        "a task that follows another while all workers are busy",
    )
    return [
        Figure(
            what=f"the head's time for {name}, {many:,} workers on {NODES:,} nodes",
            over=f"{few} workers on one",
            unit="us",
            ours=[1e6 * seconds[index] for seconds in large],
            base=[1e6 * seconds[index] for seconds in small],
            at_most=5,
        )
        for index, name in enumerate(what)
    ]
