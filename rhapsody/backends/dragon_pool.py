"""Which worker gets which task: windows that adapt, work given back, workers that come and go.

All of it runs on the service loop and knows nothing of Dragon: a `Crew` starts and ends workers and
brings messages to them, `Reports` hears what becomes of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from math import ceil
from typing import Any

from rhapsody.api.errors import BackendError, WorkerDied
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_roles import Crew, Reports
from rhapsody.backends.dragon_runtime import Host, spread
from rhapsody.backends.dragon_seat import CONCURRENT, EXCLUSIVE, Seat
from rhapsody.backends.work import Work
from rhapsody.waiting import done_within

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

STALL_SECONDS = 0.02
"""A worker that ended nothing for so long gives back what it has not begun, if others are idle."""

BARREN = 3
"""Workers in a row that may end before they are ready."""

PING_SECONDS = 1.0
"""How long the loop of a worker may be blocked that has a cancelled function to get rid of."""

SILENCE_SECONDS = 0.5
"""How long the last notes of a worker that was killed may take; users' code may hold them up."""

STOP_SECONDS = 1.5
"""How long workers may take to end by themselves at shutdown."""

KILL_SECONDS = 2.0
"""How long the end of a killed worker is waited for."""


class Pool:
    """The workers of one backend.

    Args:
        name: The backend's name, for messages.
        hosts: Where workers may run.
        limit: Most workers at once.
        together: Most async functions in the hands of one worker.
        grace: Seconds that a cancelled task may go on before its worker is killed.
        crew: Starts, ends and speaks to workers.
        reports: Hears what becomes of tasks.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[Host],
        limit: int,
        together: int,
        grace: float,
        crew: Crew,
        reports: Reports,
    ) -> None:
        self._name = name
        self._hosts = hosts
        self._limit = limit
        self._together = together
        self._grace = grace
        self._crew = crew
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._arrivals = 0
        self._seats: dict[int, Seat] = {}
        # Ordered dicts, since the first of a plain one is found behind all that were deleted.
        self._idle: OrderedDict[Seat, None] = OrderedDict()
        self._roomy = {EXCLUSIVE: OrderedDict[Seat, None](), CONCURRENT: OrderedDict[Seat, None]()}
        self._laden: dict[Seat, None] = {}
        self._workers_on: Counter[Host] = Counter()
        self._queues: dict[str, deque[tuple[int, Work]]] = {EXCLUSIVE: deque(), CONCURRENT: deque()}
        self._waiting: dict[Work, str] = {}
        self._placed: dict[Work, tuple[Seat, int]] = {}
        self._reruns: dict[Work, int] = {}
        self._cancelling: dict[Seat, list[int]] = {}
        self._barren = 0
        self._look: asyncio.TimerHandle | None = None
        self._closing = False
        self._all_gone = asyncio.Event()

    def statistics(self) -> dict[str, Any]:
        """Return how many workers and tasks there are."""
        ready = sum(seat.is_ready for seat in self._seats.values())
        return {
            "workers": ready,
            "workers_starting": len(self._seats) - ready,
            "tasks_waiting": len(self._waiting),
            "tasks_placed": len(self._placed),
        }

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are ready."""
        return [seat.pid for seat in self._seats.values() if seat.is_ready]

    # -- tasks in ---------------------------------------------------------------------------------

    def submit(self, works: Iterable[tuple[Work, str]]) -> None:
        """Take tasks, each with the way it is to be run."""
        for work, lane in works:
            self._arrivals += 1
            self._queues[lane].append((self._arrivals, work))
            self._waiting[work] = lane
        self._feed_all()
        self._grow()

    def _requeue(self, works: Sequence[tuple[Work, str]]) -> None:
        # In front of what never was in a worker, in the order given.
        for work, lane in reversed(works):
            self._queues[lane].appendleft((0, work))
            self._waiting[work] = lane

    def _grow(self) -> None:
        active = len(self._waiting) + len(self._placed)
        if not self._closing:
            self._start(min(self._limit, active) - len(self._seats))

    def _start(self, count: int) -> None:
        if count <= 0:
            return
        seats = []
        for host in spread(self._hosts, self._workers_on, count):
            self._workers_on[host] += 1
            seat = Seat(self._crew.number(), host, self._together)
            self._seats[seat.number] = seat
            seats.append(seat)
        self._crew.start(seats)

    def _feed_all(self) -> None:
        # Only as many workers are looked at as there are tasks for: there may be tens of thousands.
        for seat in tuple(islice(self._idle, len(self._waiting))):
            self._feed(seat)
        while (lane := self._next_lane()) is not None and (roomy := self._roomy[lane]):
            if not self._feed(next(iter(roomy))):
                break

    def _feed(self, seat: Seat) -> bool:
        lane = self._lane_for(seat)
        calls = self._next_calls(seat, lane) if lane is not None else []
        if calls:
            self._crew.send(seat, calls)
        self._file(seat)
        return bool(calls)

    def _next_lane(self) -> str | None:
        """Return the way of running whose turn it is: that of the task which waits longest."""
        heads = [(q[0][0], lane) for lane, q in self._queues.items() if self._first(q)]
        return min(heads)[1] if heads else None

    def _lane_for(self, seat: Seat) -> str | None:
        """Return whose turn it is at a worker; None while it has to end something first."""
        if not seat.is_ready or seat.stalled:
            return None
        lane = self._next_lane()
        return None if seat.held and seat.lane != lane else lane

    def _first(self, queue: deque[tuple[int, Work]]) -> bool:
        """Whether a queue has a task, after clearing its front of cancelled ones."""
        while queue and queue[0][1] not in self._waiting:
            queue.popleft()
        return bool(queue)

    def _next_calls(self, seat: Seat, lane: str) -> list[tuple[Work, int]]:
        room = seat.room(lane)
        queue = self._queues[lane]
        share = ceil(len(queue) / max(1, min(self._limit, len(self._seats))))
        calls: list[tuple[Work, int]] = []
        seat.lane = lane
        while len(calls) < min(room, share) and self._first(queue):
            work = queue.popleft()[1]
            del self._waiting[work]
            token = seat.take(work)
            self._placed[work] = seat, token
            calls.append((work, token))
        return calls

    def _file(self, seat: Seat) -> None:
        for seats in (self._idle, self._laden, *self._roomy.values()):
            seats.pop(seat, None)
        if not seat.is_ready:
            return
        if not seat.held:
            seat.stalled = False
            self._idle[seat] = None
        elif not seat.stalled:
            if seat.room(seat.lane) > 0:
                self._roomy[seat.lane][seat] = None
            if seat.surplus > 0:
                self._laden[seat] = None

    # -- outcomes ---------------------------------------------------------------------------------

    def on_notes(self, number: int, notes: Sequence[wire.Note]) -> None:
        """Take in notes of a worker, their payloads rebuilt."""
        seat = self._seats.get(number)
        if seat is None:
            return
        ended, busy, returned = 0, 0.0, []
        for token, word, seconds, payload in notes:
            if word in (wire.BEGUN, wire.BEGUN_URGENTLY):
                if token in seat.held:
                    seat.begun.add(token)
                    self._reports.running(seat.held[token], seat.host.name)
                continue
            if word == wire.HELLO:
                self._on_ready(seat, payload[0])
                continue
            if word == wire.GONE:
                seat.is_gone = True
                if not seat.has_ended:
                    self._crew.see_off(seat)
                continue
            if word == wire.PONG:
                seat.ponged = self._loop.time()
                continue
            work = seat.drop(token)
            if work is None:
                continue
            del self._placed[work]
            if word == wire.RETURNED and not work.ending:
                returned.append((work, seat.lane))
                continue
            ended, busy = ended + 1, busy + seconds
            self._report(work, word, payload)
        if returned:
            self._requeue(returned[::-1])
        if seat.is_gone:
            self._on_end(seat)
            self._feed_all()
            return
        if ended:
            seat.stalled = False
            seat.progress = self._loop.time()
            if seat.lane == EXCLUSIVE:
                seat.learn(ended, busy)
        self._after(seat, bool(returned))

    def _report(self, work: Work, word: int, payload: Any) -> None:
        self._reruns.pop(work, None)
        if word == wire.VALUE:
            self._reports.done(work, {"return_value": payload})
        elif word == wire.FIELDS:
            self._reports.done(work, payload)
        elif word == wire.RAISED:
            self._reports.failed(work, payload)
        else:
            self._reports.cancelled(work)

    def _after(self, seat: Seat, returned: bool) -> None:
        if seat.retiring:
            if not seat.held:
                self._crew.kill(seat)
            return
        self._feed(seat)
        if returned:
            self._feed_all()
        if not seat.held and not self._waiting:
            self._look_soon()

    def on_unsent(self, number: int, token: int, error: BaseException) -> None:
        """Take in that a call could not be sent to a worker."""
        seat = self._seats.get(number)
        work = seat.drop(token) if seat is not None else None
        if seat is None or work is None:
            return
        del self._placed[work]
        self._report(work, wire.RAISED, error)
        self._after(seat, returned=False)

    # -- idle workers and busy ones ---------------------------------------------------------------

    def _look_soon(self) -> None:
        if self._look is None and self._laden and not self._closing:
            self._look = self._loop.call_later(STALL_SECONDS, self._have_given_back)

    def _have_given_back(self) -> None:
        self._look = None
        if self._waiting or not self._idle:
            return
        now = self._loop.time()
        for seat in tuple(self._laden):
            if now - seat.progress < STALL_SECONDS:
                self._look_soon()
                continue
            seat.stall()
            self._file(seat)
            self._crew.tell(seat, wire.RETURN)

    # -- cancelling -------------------------------------------------------------------------------

    def cancel(self, work: Work) -> bool:
        """Stop a task; `Reports.cancelled` or another end follows. False where it is not here."""
        if self._waiting.pop(work, None) is not None:
            self._reruns.pop(work, None)
            self._reports.cancelled(work)
            return True
        if work not in self._placed:
            return False
        seat, token = self._placed[work]
        if not self._cancelling:
            self._loop.call_soon(self._tell_cancelled)
        self._cancelling.setdefault(seat, []).append(token)
        self._loop.call_later(self._grace, self._insist, work, seat, token)
        return True

    def _tell_cancelled(self) -> None:
        cancelling, self._cancelling = self._cancelling, {}
        for seat, tokens in cancelling.items():
            if seat.number in self._seats:
                self._crew.tell(seat, wire.CANCEL, tokens)

    def _insist(self, work: Work, seat: Seat, token: int) -> None:
        if self._placed.get(work) != (seat, token) or seat.number not in self._seats:
            return
        if seat.lane == CONCURRENT and len(seat.held) > 1:
            # Its neighbours have done nothing: the worker ends when they have.
            self._give_up(work, seat, token)
            self._retire(seat)
            self._crew.ping(seat)
            patience = max(self._grace, PING_SECONDS)
            self._loop.call_later(patience, self._end_blocked, seat, self._loop.time())
        else:
            logger.warning(
                "task %s did not end within %g s of its cancellation: its worker is replaced",
                work.uid,
                self._grace,
            )
            self._retire(seat)
            self._crew.kill(seat)
            self._loop.call_later(SILENCE_SECONDS, self._give_up, work, seat, token)

    def _end_blocked(self, seat: Seat, since: float) -> None:
        if seat.number in self._seats and seat.ponged < since:
            logger.warning(
                "backend '%s': worker %d is blocked by a cancelled async function and is replaced",
                self._name,
                seat.number,
            )
            self._crew.kill(seat)

    def _retire(self, seat: Seat) -> None:
        seat.retiring = True
        self._file(seat)

    def _give_up(self, work: Work, seat: Seat, token: int) -> None:
        if self._placed.get(work) == (seat, token):
            seat.drop(token)
            del self._placed[work]
            self._reruns.pop(work, None)
            self._reports.cancelled(work)

    # -- workers ----------------------------------------------------------------------------------

    def _on_ready(self, seat: Seat, pid: int) -> None:
        self._barren = 0
        seat.pid = pid
        seat.progress = self._loop.time()
        self._file(seat)
        if not self._waiting:
            self._look_soon()

    def on_death(self, number: int, exit_code: int | None) -> None:
        """Take in that a worker's process has ended."""
        seat = self._seats.get(number)
        if seat is not None:
            seat.has_ended = True
            seat.exit_code = exit_code
            if not seat.pid:
                seat.is_gone = True  # it never said a word
            self._on_end(seat)

    def on_host_lost(self, host: Host) -> None:
        """Take in that nothing more will be heard from the workers of a host."""
        lost = [seat for seat in self._seats.values() if seat.host == host]
        for seat in lost:  # all of them, before what they had is given to others
            seat.begun.update(seat.held)
            seat.is_gone = seat.has_ended = True
            self._file(seat)
        for seat in lost:
            if not seat.pid:  # it may still come, and nobody would know it
                self._crew.kill(seat)
            self._on_end(seat)

    def _on_end(self, seat: Seat) -> None:
        self._file(seat)
        if not (seat.is_gone and seat.has_ended):
            return
        del self._seats[seat.number]
        self._workers_on[seat.host] -= 1
        self._cancelling.pop(seat, None)
        if not self._seats:
            self._all_gone.set()
        if self._closing:
            return
        if not seat.retiring:
            logger.warning(
                "backend '%s': worker %d on %s %s",
                self._name,
                seat.number,
                seat.host.name,
                _how(seat),
            )
        if not seat.pid and not seat.retiring:
            self._on_barren()
        self._settle(seat)
        self._feed_all()
        self._grow()

    def _on_barren(self) -> None:
        self._barren += 1
        if self._barren < BARREN:
            return
        self._barren = 0
        if any(seat.is_ready for seat in self._seats.values()):
            self._limit = max(1, len(self._seats))  # as many as there is room for
            return
        error = BackendError(
            self._name,
            f"{BARREN} workers in a row ended before they were ready; what they wrote to standard "
            "error says why",
        )
        for work in tuple(self._waiting):
            del self._waiting[work]
            self._reports.failed(work, error)

    def _settle(self, dead: Seat) -> None:
        """Fail what had begun in a worker that died; the rest goes to others."""
        again = []
        for token, work in dead.held.items():
            del self._placed[work]
            reruns = self._reruns.get(work, 0)
            if work.ending:
                self._report(work, wire.CANCELED, None)
            elif token not in dead.begun:
                again.append((work, dead.lane))
            elif reruns < (work.options.get("retries") or 0):
                self._reruns[work] = reruns + 1
                again.append((work, dead.lane))
            else:
                reason = (
                    f"the worker process that ran it, on {dead.host.name}, {_how(dead)}. Usual "
                    "causes: it needs more memory than there is, or it crashes the interpreter"
                )
                self._report(work, wire.RAISED, WorkerDied(work.uid, reason))
        dead.held.clear()
        self._requeue(again)

    async def close(self) -> None:
        """End all workers, once no task is left."""
        self._closing = True
        if self._look is not None:
            self._look.cancel()
        for seat in self._seats.values():
            if seat.is_ready:
                self._crew.tell(seat, wire.STOP)
            else:
                self._crew.kill(seat)
        self._all_gone.clear()
        if not await self._gone_within(STOP_SECONDS):
            for seat in self._seats.values():
                self._crew.kill(seat)
            if not await self._gone_within(KILL_SECONDS):
                logger.error("backend '%s': workers did not end when killed", self._name)

    async def _gone_within(self, seconds: float) -> bool:
        return not self._seats or await done_within(self._all_gone.wait(), seconds)


def _how(seat: Seat) -> str:
    code = seat.exit_code
    if code is None:
        return "could not be started" if not seat.pid else "was lost with its host's agent"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
