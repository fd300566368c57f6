"""The scheduler of worker processes on simulated allocations of up to 1,000 nodes.

Workers are simulated and take no time. The benchmark measures what the program itself does for each
task, and whether that grows with the number of workers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of_call
from rhapsody.allocation import Node
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon.nodes import most_workers
from rhapsody.backends.workers.messages import READY, VALUE
from rhapsody.backends.workers.scheduler import Scheduler
from rhapsody.backends.workers.worker_state import EXCLUSIVE, WorkerState

NODES, CPUS = 1_000, 64
SMALL = [Node("node0", 3, is_head=True)]
LARGE = [Node(f"node{number}", CPUS, is_head=number == 0) for number in range(NODES)]
TASKS = 200_000
SUBMITTED_AT_ONCE = 1_000

LONE = 500
ROUNDS = 3


class Workers:
    """Simulated workers and counted reports: a `WorkerControl` and `TaskReports`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.limit = most_workers("allocation", nodes, None)
        self.scheduler = Scheduler("allocation", nodes, self.limit, 64, 2.0, self, self)
        self.ended = 0
        self._numbers = itertools.count(1)
        self._new: deque[WorkerState] = deque()
        self._busy: deque[tuple[WorkerState, list[int]]] = deque()

    def new_number(self) -> int:
        return next(self._numbers)

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        self._new += workers

    def send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        self._busy.append((worker, [call_id for _, call_id in calls]))

    def send(self, worker: WorkerState, *message: Any) -> None: ...
    def kill(self, worker: WorkerState) -> None: ...
    def reap(self, worker: WorkerState) -> None: ...
    def on_dropped(self, worker: WorkerState, segments: list[tuple[str, bool]]) -> None: ...
    def on_end(self, worker: WorkerState) -> None: ...
    def report_running(self, work: Work, place: str = "") -> None: ...

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        self.ended += 1
        return True

    def report_failed(self, work: Work, error: BaseException) -> bool:
        raise error

    def report_cancelled(self, work: Work) -> bool:
        raise AssertionError(f"{work.uid} was cancelled")

    def submit(self, works: Sequence[Work]) -> None:
        self.scheduler.submit((work, EXCLUSIVE) for work in works)

    def become_ready(self) -> None:
        """Make all new workers report that they are ready."""
        while self._new:
            worker = self._new.popleft()
            payload = worker.number, worker.node.name
            message = (worker.number, READY, 0.0, payload)
            self.scheduler.on_messages(worker.number, [message])

    def step(self) -> None:
        """Finish the calls of the worker that has had its calls longest."""
        worker, call_ids = self._busy.popleft()
        messages = [(call_id, VALUE, 1e-3, None) for call_id in call_ids]
        self.scheduler.on_messages(worker.number, messages)

    def run(self, works: Sequence[Work]) -> None:
        """Run all tasks, many in one message."""
        for start in range(0, len(works), SUBMITTED_AT_ONCE):
            self.submit(works[start : start + SUBMITTED_AT_ONCE])
        self.become_ready()
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


def seconds_each(nodes: Sequence[Node]) -> tuple[float, float, float]:
    """Return the program's time per task: many at once, one at a time, and at full load."""
    workers = Workers(nodes)
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
    many, few = (most_workers("allocation", nodes, None) for nodes in (LARGE, SMALL))
    what = (
        f"one of {TASKS:,} tasks",
        "a single task while all workers are idle",
        "a task submitted at each end while all workers are busy",
    )
    return [
        Figure(
            what=f"the head node's time for {name}, {many:,} workers on {NODES:,} nodes",
            over=f"{few} workers on one node",
            unit="us",
            ours=[1e6 * seconds[index] for seconds in large],
            base=[1e6 * seconds[index] for seconds in small],
            at_most=5,
        )
        for index, name in enumerate(what)
    ]
