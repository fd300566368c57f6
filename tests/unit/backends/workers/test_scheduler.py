"""The scheduler's decisions, with simulated workers."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody.allocation import Node
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers import scheduler, starts
from rhapsody.backends.workers.messages import (
    CANCEL,
    CANCELED,
    DISCONNECTED,
    GIVE_BACK,
    GIVEN_BACK,
    PING,
    PONG,
    READY,
    RUNNING,
    STOP,
    VALUE,
    WorkerMessage,
)
from rhapsody.backends.workers.scheduler import Scheduler
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE, WorkerState
from tests.support.waiting import until

NODES = [Node("a", 4, is_head=True), Node("b", 4)]


class SimulatedWorker:
    """A worker that does one thing whenever it is stepped."""

    def __init__(self, control: "SimulatedControl", state: WorkerState) -> None:
        self.control = control
        self.state = state
        self.backlog: list[tuple[Work, int]] = []
        self.running: dict[int, Work] = {}
        self.unsent: list[WorkerMessage] = []
        self.is_ready = False
        self.stopping = False

    def write(self, call_id: int, kind: int, payload: Any = None, seconds: float = 1e-4) -> None:
        self.unsent.append((call_id, kind, seconds, payload))
        if kind in (READY, DISCONNECTED) or self.control.dice.random() < 0.5:
            self.flush()

    def flush(self) -> None:
        messages, self.unsent = self.unsent, []
        self.control.scheduler.on_messages(self.state.number, messages)

    def become_ready(self) -> None:
        self.is_ready = True
        number = self.state.number
        self.write(number, READY, (1000 + number, self.state.node.name))

    def step(self, dice: random.Random) -> None:
        if self.unsent and dice.random() < 0.3:
            self.flush()
        elif not self.is_ready:
            self.become_ready()
        elif self.running and (dice.random() < 0.6 or not self.backlog):
            call_id = dice.choice(list(self.running))
            del self.running[call_id]
            self.write(call_id, VALUE, "fine")
        elif self.backlog and (not self.running or self.state.mode == CONCURRENT):
            work, call_id = self.backlog.pop(0)
            self.running[call_id] = work
            self.control.runs[work.uid] += 1
            self.write(call_id, RUNNING)
        elif self.stopping and not self.backlog and not self.running:
            self.exit(0)

    def cancel(self, call_id: int) -> None:
        waiting = [entry for entry in self.backlog if entry[1] == call_id]
        if waiting or call_id in self.running:
            self.backlog = [entry for entry in self.backlog if entry[1] != call_id]
            self.running.pop(call_id, None)
            self.write(call_id, CANCELED)

    def give_back(self) -> None:
        while self.backlog:
            self.write(self.backlog.pop()[1], GIVEN_BACK)
        if self.unsent:
            self.flush()

    def exit(self, code: int | None) -> None:
        self.control.workers.pop(self.state.number, None)
        if self.is_ready:
            self.write(0, DISCONNECTED)
        self.control.scheduler.on_exit(self.state.number, code)

    def die(self) -> None:
        if self.state.number in self.control.workers:
            self.exit(-9)


class SimulatedControl:
    """Controls simulated workers; they handle messages in a later pass of the loop."""

    def __init__(self, reports: "RecordedReports", limit: int) -> None:
        self.workers: dict[int, SimulatedWorker] = {}
        self.most_workers = 0
        self.last_number = 0
        self.ended_workers = 0
        self.runs: Counter[str] = Counter()
        self.asked_to_give_back: list[int] = []
        self.pinged: list[int] = []
        self.dice = random.Random(0)
        self.scheduler = Scheduler("test", NODES, limit, 8, 0.05, self, reports)

    def new_number(self) -> int:
        self.last_number += 1
        return self.last_number

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        for state in workers:
            self.workers[state.number] = SimulatedWorker(self, state)
        self.most_workers = max(self.most_workers, len(self.workers))

    def send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        assert calls
        self.workers[worker.number].backlog += calls

    def send(self, worker: WorkerState, *message: Any) -> None:
        simulated = self.workers.get(worker.number)
        if simulated is None:
            return
        loop = asyncio.get_running_loop()
        if message[0] == STOP:
            simulated.stopping = True
        elif message[0] == CANCEL:
            for call_id in message[1]:
                loop.call_soon(simulated.cancel, call_id)
        elif message[0] == PING:
            self.pinged.append(worker.number)
            loop.call_soon(simulated.write, 0, PONG)
        else:
            assert message == (GIVE_BACK,)
            self.asked_to_give_back.append(worker.number)
            loop.call_soon(simulated.give_back)

    def kill(self, worker: WorkerState) -> None:
        worker.retiring = True
        simulated = self.workers.get(worker.number)
        if simulated is not None:
            asyncio.get_running_loop().call_soon(simulated.die)

    def reap(self, worker: WorkerState) -> None:
        """Do nothing: a simulated worker reports its exit itself."""

    def on_dropped(self, worker: WorkerState, segments: list[tuple[str, bool]]) -> None:
        """Do nothing: simulated workers have no large data."""

    def on_end(self, worker: WorkerState) -> None:
        """Count the workers that have ended."""
        self.ended_workers += 1


class RecordedReports:
    """Records the ends of tasks."""

    def __init__(self) -> None:
        self.ends: dict[str, list[str]] = {}

    def report_running(self, work: Work, place: str = "") -> None:
        assert work.uid not in self.ends

    def _end(self, work: Work, end: str) -> bool:
        self.ends.setdefault(work.uid, []).append(end)
        return True

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        return self._end(work, "done")

    def report_failed(self, work: Work, error: BaseException) -> bool:
        return self._end(work, type(error).__name__)

    def report_cancelled(self, work: Work) -> bool:
        return self._end(work, "cancelled")


class Simulation:
    """A scheduler with simulated workers, and tasks for it."""

    def __init__(self, limit: int = 4) -> None:
        self.reports = RecordedReports()
        self.control = SimulatedControl(self.reports, limit)
        self.scheduler = self.control.scheduler
        self.works: list[Work] = []
        self.limit = limit
        self.dice = random.Random(0)
        self.wanted: dict[Work, int] = {}
        self.reserved: dict[Work, int] = {}
        self._attachment = Attachment(ignore)

    @property
    def workers(self) -> list[SimulatedWorker]:
        return list(self.control.workers.values())

    def submit(self, count: int, mode: str, **options: Any) -> list[Work]:
        works = [
            Work(
                {
                    "uid": f"task.{len(self.works) + n}",
                    "function": print,
                    "task_backend_specific_kwargs": options,
                },
                self._attachment,
                "",
            )
            for n in range(count)
        ]
        self.works += works
        self.scheduler.submit((work, mode) for work in works)
        return works

    def reserve(self, cpus: int) -> Work:
        """Let a task take CPUs from the workers."""
        work = Work({"uid": f"reservation.{cpus}"}, self._attachment, "")
        self.wanted[work], self.reserved[work] = cpus, 0

        def start() -> None:
            self.reserved[work] = cpus
            self.check_cpus()

        self.scheduler.reserve(work, cpus, start)
        return work

    def release(self, work: Work) -> None:
        del self.wanted[work], self.reserved[work]
        if not self.scheduler.drop_reservation(work):
            self.scheduler.release(work)

    def reserve_some(self, dice: random.Random) -> None:
        """Reserve CPUs, if some are left; otherwise release some."""
        left = self.limit - sum(self.wanted.values())
        if left:
            self.reserve(dice.randrange(1, left + 1))
        else:
            self.release(dice.choice(list(self.reserved)))

    def release_all(self) -> None:
        for work in list(self.reserved):
            self.release(work)

    def check_cpus(self) -> None:
        """Check that no more CPUs are in use than there may be workers."""
        busy = sum(bool(w.backlog or w.running) for w in self.workers)
        assert busy + sum(self.reserved.values()) <= self.limit

    def cancel(self, work: Work) -> None:
        if work.uid not in self.reports.ends and not work.interrupted:
            work.interrupted = True
            self.scheduler.cancel(work)

    def forget(self, *workers: SimulatedWorker) -> None:
        """Remove workers, which then do and report nothing."""
        for worker in workers:
            del self.control.workers[worker.state.number]

    def step_all(self) -> None:
        for worker in self.workers:
            worker.step(self.dice)

    async def run(self, dice: random.Random) -> None:
        """Step random workers until every task has ended."""
        for _ in range(100_000):
            await asyncio.sleep(0)
            if len(self.reports.ends) == len(self.works):
                return
            self.check_cpus()
            if self.workers:
                dice.choice(self.workers).step(dice)
        left = [work.uid for work in self.works if work.uid not in self.reports.ends]
        raise AssertionError(f"tasks never ended: {left}; {self.scheduler.statistics()}")


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    script=st.lists(
        st.sampled_from(["sync", "async", "kill", "cancel", "reserve", "step", "step"]),
        min_size=1,
        max_size=40,
    ),
)
def test_every_task_ends_exactly_once(seed: int, script: list[str]) -> None:
    dice = random.Random(seed)

    async def play() -> None:
        simulation = Simulation()
        for action in script:
            if action in ("sync", "async"):
                mode = EXCLUSIVE if action == "sync" else CONCURRENT
                simulation.submit(dice.randrange(1, 30), mode, retries=dice.randrange(2))
            elif action == "kill" and simulation.workers:
                worker = dice.choice(simulation.workers)
                if worker.is_ready:
                    worker.die()
            elif action == "cancel" and simulation.works:
                simulation.cancel(dice.choice(simulation.works))
            elif action == "reserve":
                simulation.reserve_some(dice)
            else:
                for _ in range(dice.randrange(20)):
                    if simulation.workers:
                        dice.choice(simulation.workers).step(dice)
                    await asyncio.sleep(0)
        simulation.release_all()
        await simulation.run(dice)
        assert {len(ends) for ends in simulation.reports.ends.values()} <= {1}
        assert simulation.control.most_workers <= 4
        for work in simulation.works:
            (end,) = simulation.reports.ends[work.uid]
            runs = simulation.control.runs[work.uid]
            assert runs <= 1 + (work.options.get("retries") or 0)
            assert end != "done" or runs >= 1
        stopping = asyncio.ensure_future(simulation.scheduler.stop())
        while not stopping.done():
            for worker in simulation.workers:
                worker.step(dice)
            await asyncio.sleep(0)
        assert simulation.scheduler.statistics()["workers"] == 0
        assert simulation.scheduler.statistics()["tasks_placed"] == 0

    asyncio.run(play())


async def test_stalled_worker_gives_back_waiting_calls_to_an_idle_one() -> None:
    simulation = Simulation(limit=2)
    dice = random.Random(1)
    simulation.submit(400, EXCLUSIVE)
    await simulation.run(dice)  # quick tasks, which widen the windows
    simulation.submit(40, EXCLUSIVE)
    stuck, free = simulation.workers
    while not stuck.running:
        stuck.step(dice)
    (running,) = stuck.running.values()
    assert stuck.backlog

    def all_others_ended() -> bool:
        free.step(dice)
        return len(simulation.reports.ends) == len(simulation.works) - 1

    await until(all_others_ended)
    assert running.uid not in simulation.reports.ends
    assert simulation.control.asked_to_give_back == [stuck.state.number]


async def test_neither_mode_starves_the_other() -> None:
    simulation = Simulation(limit=1)
    dice = random.Random(3)
    simulation.submit(200, CONCURRENT)
    simulation.submit(1, EXCLUSIVE)
    simulation.submit(200, CONCURRENT)
    (worker,) = simulation.workers
    while simulation.works[200].uid not in simulation.reports.ends:
        worker.step(dice)
        await asyncio.sleep(0)
    assert len(simulation.reports.ends) < 250


@pytest.mark.parametrize("code", [-11, 3, None])
async def test_three_failed_starts_fail_the_waiting_tasks(code: int | None) -> None:
    simulation = Simulation(limit=1)
    simulation.submit(5, EXCLUSIVE)
    for _ in range(3):
        assert not simulation.reports.ends
        (worker,) = simulation.workers
        worker.exit(code)
    assert list(simulation.reports.ends.values()) == [["BackendError"]] * 5


async def test_tasks_wait_for_workers_that_still_start_when_others_failed() -> None:
    simulation = Simulation(limit=5)
    simulation.submit(50, EXCLUSIVE)
    assert len(simulation.workers) == 5
    for worker in simulation.workers[:3]:
        worker.exit(3)
    assert not simulation.reports.ends
    await simulation.run(random.Random(5))
    assert list(simulation.reports.ends.values()) == [["done"]] * 50


async def test_next_tasks_try_again_to_start_the_workers_that_failed() -> None:
    simulation = Simulation(limit=4)
    simulation.submit(50, EXCLUSIVE)
    for worker in simulation.workers[:3]:
        worker.exit(None)
    await simulation.run(random.Random(5))
    assert len(simulation.workers) == 3
    simulation.submit(50, EXCLUSIVE)
    await simulation.run(random.Random(5))
    assert len(simulation.workers) == 4


async def test_workers_that_failed_are_tried_again_under_a_steady_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "LIMIT_SECONDS", 0.02)
    simulation = Simulation(limit=4)
    simulation.submit(50, EXCLUSIVE)
    for worker in simulation.workers[:3]:
        worker.exit(None)
    assert len(simulation.workers) == 3
    await until(lambda: len(simulation.workers) == 4)


async def test_lost_node_fails_its_possibly_running_calls() -> None:
    simulation = Simulation(limit=4)
    dice = random.Random(5)
    simulation.submit(40, EXCLUSIVE)
    for _ in range(60):
        dice.choice(simulation.workers).step(dice)
    simulation.forget(*(w for w in simulation.workers if w.state.node == NODES[1]))
    simulation.scheduler.on_node_lost(NODES[1])
    await simulation.run(dice)
    ends = Counter(end for (end,) in simulation.reports.ends.values())
    assert set(ends) == {"done", "WorkerDied"}


async def test_rerun_avoids_the_other_workers_of_a_lost_node() -> None:
    simulation = Simulation(limit=4)
    dice = random.Random(5)
    works = simulation.submit(3, EXCLUSIVE, retries=1)
    here, lost, idle = sorted(simulation.workers, key=lambda w: w.state.node != NODES[0])
    assert lost.state.node == idle.state.node == NODES[1]
    for worker in (lost, idle, here):
        worker.become_ready()
    while idle.state.calls:
        idle.step(dice)
    simulation.forget(lost, idle)
    simulation.scheduler.on_node_lost(NODES[1])
    await simulation.run(dice)
    assert [simulation.reports.ends[work.uid] for work in works] == [["done"]] * 3


async def test_starting_workers_of_a_lost_node_are_killed_and_replaced() -> None:
    simulation = Simulation(limit=4)
    dice = random.Random(5)
    simulation.submit(40, EXCLUSIVE)
    for _ in range(4):
        lost = [w.state for w in simulation.workers if w.state.node == NODES[1]]
        simulation.scheduler.on_node_lost(NODES[1])
        assert all(state.retiring for state in lost)
        await asyncio.sleep(0)
    await simulation.run(dice)
    assert {end for (end,) in simulation.reports.ends.values()} == {"done"}
    assert simulation.scheduler.statistics()["workers"] == 4


async def test_end_of_each_worker_is_told_once() -> None:
    simulation = Simulation(limit=3)
    simulation.submit(9, EXCLUSIVE)
    await simulation.run(random.Random(1))
    workers = [worker.state for worker in simulation.workers]
    for worker in workers:
        simulation.control.kill(worker)
    await simulation.scheduler.stop()
    assert simulation.control.ended_workers == len(workers)


async def test_cancel_before_dispatch_ends_the_task() -> None:
    simulation = Simulation()
    (work,) = simulation.submit(1, EXCLUSIVE)
    assert simulation.scheduler.cancel(work)
    assert simulation.reports.ends[work.uid] == ["cancelled"]


async def test_cancel_of_an_unknown_task_returns_false() -> None:
    simulation = Simulation()
    (work,) = simulation.submit(1, EXCLUSIVE)
    simulation.cancel(work)
    assert not simulation.scheduler.cancel(work)
    assert simulation.reports.ends[work.uid] == ["cancelled"]


async def test_worker_is_killed_if_a_cancelled_sync_call_outlasts_the_grace() -> None:
    simulation = Simulation(limit=1)
    (work,) = simulation.submit(1, EXCLUSIVE)
    (worker,) = simulation.workers
    worker.become_ready()
    worker.backlog.clear()  # it never reacts to the cancellation
    simulation.cancel(work)
    await until(lambda: work.uid in simulation.reports.ends)
    assert simulation.reports.ends[work.uid] == ["cancelled"]
    assert worker.state.retiring
    assert worker not in simulation.workers


@pytest.mark.parametrize("mode", [EXCLUSIVE, CONCURRENT])
async def test_cancelled_waiting_call_spares_the_running_one(mode: str) -> None:
    simulation = Simulation(limit=1)
    simulation.submit(20, mode)
    (worker,) = simulation.workers
    worker.become_ready()
    worker.flush()
    await simulation.run(random.Random(0))  # several calls fit into the worker's window now
    running, waiting = simulation.submit(2, mode)
    (first, call_id), (second, _) = worker.backlog
    assert (first, second) == (running, waiting)
    worker.backlog.clear()  # the running task keeps it from reading the cancellation
    worker.running[call_id] = running
    worker.write(call_id, RUNNING)
    worker.flush()
    simulation.cancel(waiting)
    await until(lambda: waiting.uid in simulation.reports.ends)
    assert simulation.reports.ends[waiting.uid] == ["cancelled"]
    assert running.uid not in simulation.reports.ends
    assert worker in simulation.workers
    assert not worker.state.retiring
    await simulation.run(random.Random(0))
    assert simulation.reports.ends[running.uid] == ["done"]


async def test_cancelled_async_call_outlasting_the_grace_spares_other_calls() -> None:
    simulation = Simulation(limit=1)
    dice = random.Random(0)
    simulation.submit(1, CONCURRENT)
    (worker,) = simulation.workers
    worker.become_ready()
    await simulation.run(dice)
    stubborn, neighbour = simulation.submit(2, CONCURRENT)
    while len(worker.running) < 2:
        worker.step(random.Random(4))
        worker.running.update((call_id, work) for work, call_id in worker.backlog)
        worker.backlog.clear()
    for call_id, work in list(worker.running.items()):
        if work is stubborn:
            del worker.running[call_id]  # it never reacts to the cancellation
    simulation.cancel(stubborn)
    await until(lambda: stubborn.uid in simulation.reports.ends)
    assert neighbour.uid not in simulation.reports.ends
    assert simulation.control.pinged == [worker.state.number]
    await simulation.run(dice)
    assert simulation.reports.ends[neighbour.uid] == ["done"]
    await until(lambda: worker not in simulation.workers)


async def test_unsent_call_fails_its_task_alone() -> None:
    simulation = Simulation(limit=1)
    first, second = simulation.submit(2, EXCLUSIVE)
    (worker,) = simulation.workers
    worker.become_ready()
    ((_, call_id),) = worker.backlog
    worker.backlog.clear()
    simulation.scheduler.on_unsent(worker.state.number, call_id, TypeError("not picklable"))
    await simulation.run(random.Random(0))
    assert simulation.reports.ends[first.uid] == ["TypeError"]
    assert simulation.reports.ends[second.uid] == ["done"]


async def test_call_given_back_before_its_worker_died_is_not_lost() -> None:
    simulation = Simulation(limit=1)
    dice = random.Random(7)
    (work,) = simulation.submit(1, EXCLUSIVE)
    (worker,) = simulation.workers
    worker.become_ready()
    ((_, call_id),) = worker.backlog
    simulation.forget(worker)
    last: list[WorkerMessage] = [(call_id, GIVEN_BACK, 0.0, None), (0, DISCONNECTED, 0.0, None)]
    simulation.scheduler.on_messages(worker.state.number, last)
    simulation.scheduler.on_exit(worker.state.number, -9)
    await simulation.run(dice)
    assert simulation.reports.ends[work.uid] == ["done"]


async def test_killed_starts_keep_the_waiting_tasks_and_pause_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starts, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(starts, "LONGEST_PAUSE_SECONDS", 0.001)
    simulation = Simulation(limit=1)
    simulation.submit(5, EXCLUSIVE)
    for _ in range(10):
        await until(lambda: bool(simulation.workers))
        simulation.workers[0].exit(-9)
        assert not simulation.workers
    assert not simulation.reports.ends
    await until(lambda: bool(simulation.workers))
    await simulation.run(random.Random(0))
    assert list(simulation.reports.ends.values()) == [["done"]] * 5


async def test_starts_that_are_always_killed_fail_the_waiting_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starts, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(starts, "LONGEST_PAUSE_SECONDS", 0.001)
    simulation = Simulation(limit=2)
    simulation.submit(5, EXCLUSIVE)

    def all_failed() -> bool:
        for worker in simulation.workers:
            worker.exit(-15)
        return len(simulation.reports.ends) == 5

    await until(all_failed)
    assert list(simulation.reports.ends.values()) == [["BackendError"]] * 5


def is_reserved(simulation: Simulation, work: Work) -> bool:
    """Step all workers once; return whether the task has its CPUs."""
    simulation.step_all()
    simulation.check_cpus()
    return simulation.reserved[work] > 0


@pytest.mark.parametrize("mode", [EXCLUSIVE, CONCURRENT])
async def test_reservation_in_a_stream_of_tasks_is_served_soon(mode: str) -> None:
    simulation = Simulation(limit=2)
    simulation.submit(200, mode)
    while len(simulation.reports.ends) < 100:
        simulation.step_all()
        await asyncio.sleep(0)
    work = simulation.reserve(2)
    simulation.submit(1000, mode)
    await until(lambda: is_reserved(simulation, work))
    ended = len(simulation.reports.ends)
    assert ended < 300
    for _ in range(20):
        assert is_reserved(simulation, work)
    assert len(simulation.reports.ends) == ended
    simulation.release(work)
    await simulation.run(random.Random(1))


async def test_reservation_takes_the_cpu_of_the_worker_that_ends_first() -> None:
    simulation = Simulation(limit=2)
    simulation.submit(2, EXCLUSIVE)
    stuck, free = simulation.workers
    for worker in (stuck, free):
        worker.become_ready()
        worker.step(random.Random(0))
    work = simulation.reserve(1)
    simulation.submit(10, EXCLUSIVE)
    simulation.forget(stuck)
    await until(lambda: is_reserved(simulation, work))
    assert len(simulation.reports.ends) == 1


async def test_workers_get_their_turn_between_reservations() -> None:
    simulation = Simulation(limit=2)
    simulation.submit(20, EXCLUSIVE)
    rounds = 0
    work = simulation.reserve(2)
    while len(simulation.reports.ends) < 20:
        await until(lambda work=work: is_reserved(simulation, work))  # type: ignore[misc]
        simulation.release(work)
        work = simulation.reserve(2)
        rounds += 1
        assert rounds < 40


async def test_dropped_reservation_lets_the_workers_go_on() -> None:
    simulation = Simulation(limit=1)
    simulation.submit(5, EXCLUSIVE)
    (worker,) = simulation.workers
    worker.become_ready()
    work = simulation.reserve(1)
    assert not simulation.reserved[work]
    simulation.release(work)
    assert not simulation.scheduler.drop_reservation(work)
    await simulation.run(random.Random(2))
