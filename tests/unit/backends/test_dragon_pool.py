"""The pool's decisions, over workers that are simulated: whatever happens, each task ends once."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.attachment import Attachment, ignore
from rhapsody.backends.dragon_pool import Pool
from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.dragon_seat import CONCURRENT, EXCLUSIVE, Seat
from rhapsody.backends.work import Work

HOSTS = [Host("a", 4, is_head=True), Host("b", 4)]


class Simulated:
    """A worker: does as a real one, when its turn comes."""

    def __init__(self, crew: "Crew", seat: Seat) -> None:
        self.crew = crew
        self.seat = seat
        self.backlog: list[tuple[Work, int]] = []
        self.running: dict[int, Work] = {}
        self.unsaid: list[wire.Note] = []
        self.said_hello = False
        self.stopping = False

    def say(self, token: int, word: int, payload: Any = None, seconds: float = 1e-4) -> None:
        self.unsaid.append((token, word, seconds, payload))
        if word in (wire.HELLO, wire.GONE) or self.crew.dice.random() < 0.5:
            notes, self.unsaid = self.unsaid, []
            self.crew.pool.on_notes(self.seat.number, notes)

    def step(self, dice: random.Random) -> None:
        if self.unsaid and dice.random() < 0.3:
            notes, self.unsaid = self.unsaid, []
            self.crew.pool.on_notes(self.seat.number, notes)
        elif not self.said_hello:
            self.said_hello = True
            self.say(self.seat.number, wire.HELLO, (1000 + self.seat.number, self.seat.host.name))
        elif self.running and (dice.random() < 0.6 or not self.backlog):
            token = dice.choice(list(self.running))
            del self.running[token]
            self.say(token, wire.VALUE, "fine")
        elif self.backlog and (not self.running or self.seat.lane == CONCURRENT):
            work, token = self.backlog.pop(0)
            self.running[token] = work
            self.crew.ran[work.uid] += 1
            self.say(token, wire.BEGUN)
        elif self.stopping and not self.backlog and not self.running:
            self.end(0)

    def end(self, code: int) -> None:
        self.crew.workers.pop(self.seat.number, None)
        if self.said_hello:
            self.say(0, wire.GONE)
        self.crew.pool.on_death(self.seat.number, code)


class Crew:
    """Simulated workers; messages to them arrive when they are stepped."""

    def __init__(self) -> None:
        self.pool: Pool
        self.workers: dict[int, Simulated] = {}
        self.most = 0
        self.numbers = 0
        self.ran: Counter[str] = Counter()
        self.dice = random.Random(0)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def start(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            self.workers[seat.number] = Simulated(self, seat)
        self.most = max(self.most, len(self.workers))

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        assert calls
        self.workers[seat.number].backlog += calls

    def tell(self, seat: Seat, *message: Any) -> None:
        worker = self.workers.get(seat.number)
        if worker is None:
            return
        loop = asyncio.get_running_loop()
        if message[0] == wire.STOP:
            worker.stopping = True
        elif message[0] == wire.CANCEL:
            for token in message[1]:
                loop.call_soon(self.cancel, worker, token)
        else:
            loop.call_soon(self.give_back, worker)

    def cancel(self, worker: Simulated, token: int) -> None:
        waiting = [entry for entry in worker.backlog if entry[1] == token]
        if waiting or token in worker.running:
            worker.backlog = [entry for entry in worker.backlog if entry[1] != token]
            worker.running.pop(token, None)
            worker.say(token, wire.CANCELED)

    def give_back(self, worker: Simulated) -> None:
        while worker.backlog:
            worker.say(worker.backlog.pop()[1], wire.RETURNED)

    def ping(self, seat: Seat) -> None:
        worker = self.workers[seat.number]
        asyncio.get_running_loop().call_soon(worker.say, 0, wire.PONG)

    def kill(self, seat: Seat) -> None:
        seat.retiring = True
        worker = self.workers.get(seat.number)
        if worker is not None:
            asyncio.get_running_loop().call_soon(self.end, worker)

    def end(self, worker: Simulated) -> None:
        if worker.seat.number in self.workers:
            worker.end(-9)

    def see_off(self, seat: Seat) -> None:
        """Nothing: a simulated worker's end is told of by itself."""


class Reports:
    def __init__(self) -> None:
        self.ends: dict[str, list[str]] = {}

    def running(self, work: Work, place: str) -> None:
        assert work.uid not in self.ends

    def _end(self, work: Work, how: str) -> None:
        self.ends.setdefault(work.uid, []).append(how)

    def done(self, work: Work, fields: dict[str, Any]) -> None:
        self._end(work, "done")

    def failed(self, work: Work, error: BaseException) -> None:
        self._end(work, type(error).__name__)

    def cancelled(self, work: Work) -> None:
        self._end(work, "cancelled")


class Program:
    """A pool of four workers at most, and tasks for it."""

    def __init__(self, limit: int = 4) -> None:
        self.crew, self.reports = Crew(), Reports()
        self.pool = Pool("test", HOSTS, limit, 8, 0.05, self.crew, self.reports)
        self.crew.pool = self.pool
        self.works: list[Work] = []
        self._attachment = Attachment(ignore)

    def submit(self, count: int, lane: str, **options: Any) -> list[Work]:
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
        self.pool.submit((work, lane) for work in works)
        return works

    def cancel(self, work: Work) -> None:
        if work.uid not in self.reports.ends and not work.ending:
            work.ending = True
            self.pool.cancel(work)

    async def run(self, dice: random.Random) -> None:
        """Step the workers until everything has ended."""
        for _ in range(100_000):
            await asyncio.sleep(0)
            if len(self.reports.ends) == len(self.works):
                return
            if self.crew.workers:
                dice.choice(list(self.crew.workers.values())).step(dice)
        left = [work.uid for work in self.works if work.uid not in self.reports.ends]
        raise AssertionError(f"these never ended: {left}; {self.pool.statistics()}")


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    script=st.lists(
        st.sampled_from(["sync", "async", "kill", "cancel", "step", "step"]),
        min_size=1,
        max_size=40,
    ),
)
def test_each_task_ends_once_whatever_happens(seed: int, script: list[str]) -> None:
    dice = random.Random(seed)

    async def play() -> None:
        program = Program()
        for action in script:
            if action in ("sync", "async"):
                lane = EXCLUSIVE if action == "sync" else CONCURRENT
                program.submit(dice.randrange(1, 30), lane, retries=dice.randrange(2))
            elif action == "kill" and program.crew.workers:
                worker = dice.choice(list(program.crew.workers.values()))
                if worker.said_hello:
                    worker.end(-9)
            elif action == "cancel" and program.works:
                program.cancel(dice.choice(program.works))
            else:
                for _ in range(dice.randrange(20)):
                    if program.crew.workers:
                        dice.choice(list(program.crew.workers.values())).step(dice)
                    await asyncio.sleep(0)
        await program.run(dice)
        assert {len(ends) for ends in program.reports.ends.values()} <= {1}
        assert program.crew.most <= 4
        for work in program.works:
            (end,) = program.reports.ends[work.uid]
            runs = program.crew.ran[work.uid]
            assert runs <= 1 + (work.options.get("retries") or 0)
            assert end != "done" or runs >= 1
        closing = asyncio.ensure_future(program.pool.close())
        while not closing.done():
            for worker in list(program.crew.workers.values()):
                worker.step(dice)
            await asyncio.sleep(0)
        assert program.pool.statistics()["workers"] == 0
        assert program.pool.statistics()["tasks_placed"] == 0

    asyncio.run(play())


async def test_a_busy_worker_gives_back_what_others_could_do() -> None:
    program = Program(limit=2)
    dice = random.Random(1)
    program.submit(400, EXCLUSIVE)
    await program.run(dice)  # quick ones, so that the windows are wide
    program.submit(40, EXCLUSIVE)
    stuck, free = program.crew.workers.values()
    stuck.step(random.Random(0))
    with contextlib.suppress(AssertionError):
        for _ in range(200):
            free.step(dice)
            await asyncio.sleep(0.001)
    assert len(program.reports.ends) == len(program.works) - 1


async def test_neither_kind_of_task_starves_the_other() -> None:
    program = Program(limit=1)
    dice = random.Random(3)
    program.submit(200, CONCURRENT)
    program.submit(1, EXCLUSIVE)
    program.submit(200, CONCURRENT)
    (worker,) = program.crew.workers.values()
    while program.works[200].uid not in program.reports.ends:
        worker.step(dice)
        await asyncio.sleep(0)
    assert len(program.reports.ends) < 250


@pytest.mark.parametrize("code", [-11, 3, None])
async def test_three_workers_that_never_get_ready_are_enough(code: int | None) -> None:
    program = Program(limit=1)
    program.submit(5, EXCLUSIVE)
    for _ in range(3):
        (worker,) = program.crew.workers.values()
        del program.crew.workers[worker.seat.number]
        program.pool.on_death(worker.seat.number, code)
    assert [ends for ends in program.reports.ends.values()] == [["BackendError"]] * 5


async def test_the_loss_of_a_host_fails_what_may_have_run_there() -> None:
    program = Program(limit=4)
    dice = random.Random(5)
    program.submit(40, EXCLUSIVE)
    for _ in range(60):
        dice.choice(list(program.crew.workers.values())).step(dice)
    lost = [w for w in program.crew.workers.values() if w.seat.host == HOSTS[1]]
    for worker in lost:
        del program.crew.workers[worker.seat.number]
    program.pool.on_host_lost(HOSTS[1])
    await program.run(dice)
    assert set(Counter(end for (end,) in program.reports.ends.values())) == {"done", "WorkerDied"}


async def test_what_is_run_again_goes_to_no_other_worker_of_a_lost_host() -> None:
    program = Program(limit=4)
    dice = random.Random(5)
    program.submit(3, EXCLUSIVE, retries=1)
    started = program.crew.workers.values()
    here, lost, idle = sorted(started, key=lambda worker: worker.seat.host != HOSTS[0])
    assert lost.seat.host == idle.seat.host == HOSTS[1]
    works = list(program.works)
    for worker in (lost, idle, here):
        worker.say(worker.seat.number, wire.HELLO, (1, worker.seat.host.name))
    while idle.seat.held:
        idle.step(dice)
    for worker in (lost, idle):
        del program.crew.workers[worker.seat.number]
    program.pool.on_host_lost(HOSTS[1])
    await program.run(dice)
    assert [program.reports.ends[work.uid] for work in works] == [["done"]] * 3


async def test_workers_that_start_on_a_lost_host_cost_nobody_anything() -> None:
    program = Program(limit=4)
    dice = random.Random(5)
    program.submit(40, EXCLUSIVE)
    for _ in range(4):
        lost = [seat for seat in program.pool._seats.values() if seat.host == HOSTS[1]]
        program.pool.on_host_lost(HOSTS[1])
        assert all(seat.retiring for seat in lost)  # killed, for they might still come
    await program.run(dice)
    assert {end for (end,) in program.reports.ends.values()} == {"done"}
    assert program.pool.statistics()["workers"] == 4


async def test_a_task_that_the_pool_has_not_got_is_not_cancelled_by_it() -> None:
    program = Program()
    (work,) = program.submit(1, EXCLUSIVE)
    assert program.pool.cancel(work)
    assert not program.pool.cancel(work)
    assert program.reports.ends[work.uid] == ["cancelled"]


async def test_what_a_worker_gave_back_before_it_died_is_not_lost() -> None:
    program = Program(limit=1)
    dice = random.Random(7)
    (work,) = program.submit(1, EXCLUSIVE)
    (worker,) = program.crew.workers.values()
    worker.say(worker.seat.number, wire.HELLO, (1, "a"))
    ((_, token),) = worker.backlog
    del program.crew.workers[worker.seat.number]
    notes: list[wire.Note] = [(token, wire.RETURNED, 0.0, None), (0, wire.GONE, 0.0, None)]
    program.pool.on_notes(worker.seat.number, notes)
    program.pool.on_death(worker.seat.number, -9)
    await program.run(dice)
    assert program.reports.ends[work.uid] == ["done"]
