"""The scheduler of worker processes: which worker gets which task, and when workers start and end.

It runs on the service loop. A `WorkerControl` starts and ends workers and sends messages to them;
`TaskReports` takes the reports about tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import ceil
from typing import Any

from rhapsody.allocation import Node
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.messages import (
    CANCEL,
    CANCELED,
    DISCONNECTED,
    DROPPED,
    FIELDS,
    GIVE_BACK,
    GIVEN_BACK,
    MEMORY,
    NOT_REBUILT,
    PING,
    PONG,
    RAISED,
    READY,
    RUNNING,
    RUNNING_URGENT,
    STOP,
    VALUE,
    WorkerMessage,
)
from rhapsody.backends.workers.pickling import not_rebuilt
from rhapsody.backends.workers.reservations import Reservations
from rhapsody.backends.workers.starts import FailedStarts, spread
from rhapsody.backends.workers.task_queues import TaskQueues
from rhapsody.backends.workers.worker_state import (
    CONCURRENT,
    EXCLUSIVE,
    OwnCall,
    WorkerControl,
    WorkerState,
)
from rhapsody.errors import BackendError, WorkerDied
from rhapsody.waiting import done_within

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

STATUS_KINDS = frozenset({READY, DISCONNECTED, PONG, DROPPED})
"""Kinds of messages that are about a worker and not about a call."""

STALL_SECONDS = 0.02
"""A worker that has ended no call for this long gives back its waiting calls, if other workers are
idle, or if a task waits for CPUs."""

PING_SECONDS = 1.0
"""How long the event loop of a retiring worker may be blocked before the worker is killed."""

LIMIT_SECONDS = 60.0
"""How long there are fewer workers after starts that failed for good, before others are tried."""

LAST_MESSAGES_SECONDS = 0.5
"""How long the last messages of a killed worker may take; user code may delay their loading."""

STOP_SECONDS = 1.5
"""How long workers may take to end by themselves."""

KILL_SECONDS = 2.0
"""Longest wait for killed workers to end."""


class Scheduler:
    """Distributes the tasks of one backend over its workers.

    Args:
        name: The backend's name, for errors and the log.
        nodes: Nodes that workers may run on.
        limit: Maximum number of workers at a time.
        async_limit: Maximum number of async functions that a worker may hold.
        grace: Seconds that a cancelled task may take to end before its worker is killed.
        control: Starts and ends workers and sends messages to them.
        reports: Takes reports about tasks.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        limit: int,
        async_limit: int,
        grace: float,
        control: WorkerControl,
        reports: TaskReports,
    ) -> None:
        self._name = name
        self._nodes = nodes
        self._most = limit
        self._limit = limit
        """The same, or fewer after starts that failed for good."""
        self._async_limit = async_limit
        self._grace = grace
        self._control = control
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, WorkerState] = {}
        # Ordered dicts: the first key of a plain dict is found by scanning all deleted ones.
        self._idle: OrderedDict[WorkerState, None] = OrderedDict()
        self._with_room = {
            EXCLUSIVE: OrderedDict[WorkerState, None](),
            CONCURRENT: OrderedDict[WorkerState, None](),
        }
        self._with_waiting_calls: dict[WorkerState, None] = {}
        self._busy: set[WorkerState] = set()
        self._reservations = Reservations(limit)
        self._workers_on: Counter[Node] = Counter()
        self._waiting = TaskQueues()
        self._placed: dict[Work, tuple[WorkerState, int]] = {}
        self._own: dict[Work, WorkerState] = {}
        self._reruns: dict[Work, int] = {}
        self._cancelling: dict[WorkerState, list[int]] = {}
        self._failed_starts = FailedStarts()
        self._start_pause: asyncio.TimerHandle | None = None
        self._limit_end: asyncio.TimerHandle | None = None
        self._stall_check: asyncio.TimerHandle | None = None
        self._stopping = False
        self._all_ended = asyncio.Event()

    def statistics(self) -> dict[str, Any]:
        """Return the numbers of workers and tasks."""
        starting = sum(not worker.pid for worker in self._workers.values())
        return {
            "workers": len(self._workers) - starting,
            "workers_starting": starting,
            "tasks_waiting": len(self._waiting),
            "tasks_placed": len(self._placed),
        }

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are ready."""
        return [worker.pid for worker in self._workers.values() if worker.pid]

    # -- new tasks --------------------------------------------------------------------------------

    def submit(self, works: Iterable[tuple[Work, str]]) -> None:
        """Take tasks, each with the mode that it runs in."""
        if not (self._waiting or self._placed):
            self._limit = self._most  # there may be room again since the starts that failed
        self._waiting.add(works)
        self._assign_all()
        self._start_missing_workers()

    def submit_alone(self, call: OwnCall) -> None:
        """Take a task that runs in a new worker, which ends with it; no limit applies."""
        (node,) = spread(self._nodes, self._workers_on, 1)
        worker = WorkerState(self._control.new_number(), node, self._async_limit, call)
        self._own[call.work] = worker
        self._workers[worker.number] = worker
        self._workers_on[node] += 1
        self._control.start_workers([worker])

    def reserve(self, work: Work, cpus: int, start: Callable[[], None]) -> None:
        """Take CPUs from the shared workers, for a task that runs elsewhere until `release`.

        Args:
            work: The task.
            cpus: Number of CPUs. All tasks together never have more than there may be workers.
            start: Called once when as many workers are without calls, and get none.
        """
        self._reservations.add(work, cpus, start)
        self._serve_reservations()
        if self._reservations.any_waits:
            self._check_stalls_soon()

    def release(self, work: Work) -> None:
        """Return the CPUs of a task that has ended, if it has any."""
        if self._reservations.end(work):
            if not self._reservations.any_waits:
                self._assign_all()  # before the next reservation: both get their turns
            self._serve_reservations()

    def drop_reservation(self, work: Work) -> bool:
        """Forget a task that waits for CPUs; return False if it does not wait for any."""
        dropped = self._reservations.drop(work)
        if dropped:
            self._serve_reservations()
            self._assign_all()
        return dropped

    def _serve_reservations(self) -> None:
        while (start := self._reservations.next(len(self._busy))) is not None:
            start()
            if not self._reservations.any_waits:
                self._assign_all()

    def _start_own_call(self, worker: WorkerState, call: OwnCall) -> None:
        worker.retiring = True  # it gets no other call
        worker.mode = call.mode
        call_id = worker.add_call(call.work)
        self._placed[call.work] = worker, call_id
        self._control.send_calls(worker, [(call.work, call_id)])

    def _start_missing_workers(self) -> None:
        placed = len(self._placed) - sum(work in self._placed for work in self._own)
        active = len(self._waiting) + placed
        if not self._stopping and self._start_pause is None:
            self._start(min(self._limit, active) - (len(self._workers) - len(self._own)))

    def _start(self, count: int) -> None:
        if count <= 0:
            return
        workers = []
        for node in spread(self._nodes, self._workers_on, count):
            self._workers_on[node] += 1
            worker = WorkerState(self._control.new_number(), node, self._async_limit)
            self._workers[worker.number] = worker
            workers.append(worker)
        self._control.start_workers(workers)

    def _assign_all(self) -> None:
        # Considers no more workers than tasks wait: there may be tens of thousands of workers.
        for worker in tuple(islice(self._idle, len(self._waiting))):
            self._assign(worker)
        while (mode := self._waiting.next_mode()) is not None and (
            workers := self._with_room[mode]
        ):
            if not self._assign(next(iter(workers))):
                break

    def _assign(self, worker: WorkerState) -> bool:
        mode = self._mode_for(worker)
        calls = self._next_calls(worker, mode) if mode is not None else []
        if calls:
            self._control.send_calls(worker, calls)
        self._classify(worker)
        return bool(calls)

    def _mode_for(self, worker: WorkerState) -> str | None:
        """Return the mode of a worker's next calls; None if it cannot be given any now."""
        if not worker.is_ready or worker.stalled:
            return None
        if self._reservations and not self._may_get_calls(worker):
            return None
        mode = self._waiting.next_mode()
        return None if worker.calls and worker.mode != mode else mode

    def _may_get_calls(self, worker: WorkerState) -> bool:
        return self._reservations.allow_another(len(self._busy) - (worker in self._busy))

    def _next_calls(self, worker: WorkerState, mode: str) -> list[tuple[Work, int]]:
        free = worker.free_slots(mode)
        workers = max(1, min(self._limit, len(self._workers)))
        share = ceil(self._waiting.length(mode) / workers)
        calls: list[tuple[Work, int]] = []
        worker.mode = mode
        for work in self._waiting.take(mode, min(free, share)):
            call_id = worker.add_call(work)
            self._placed[work] = worker, call_id
            calls.append((work, call_id))
        return calls

    def _classify(self, worker: WorkerState) -> None:
        """Put a worker into the collections that it belongs to now."""
        for workers in (self._idle, self._with_waiting_calls, *self._with_room.values()):
            workers.pop(worker, None)
        self._busy.discard(worker)
        if worker.calls and worker.own is None:
            self._busy.add(worker)  # also a worker that ends: its process may still run
        if not worker.is_ready:
            return
        if not worker.calls:
            worker.stalled = False
            self._idle[worker] = None
        elif not worker.stalled:
            if worker.free_slots(worker.mode) > 0:
                self._with_room[worker.mode][worker] = None
            if worker.waiting_calls > 0:
                self._with_waiting_calls[worker] = None

    # -- messages from workers --------------------------------------------------------------------

    def on_messages(self, number: int, messages: Sequence[WorkerMessage]) -> None:
        """Handle messages of a worker, with loaded payloads."""
        worker = self._workers.get(number)
        if worker is None:
            return
        ended, busy_seconds, given_back = 0, 0.0, []
        for call_id, kind, seconds, payload in messages:
            if kind in (RUNNING, RUNNING_URGENT):
                if call_id in worker.calls:
                    worker.running.add(call_id)
                    begun = worker.calls[call_id]
                    begun.location = worker.location
                    self._reports.report_running(begun, worker.node.name)
                continue
            if kind == MEMORY:
                if call_id in worker.calls:
                    worker.calls[call_id].peak_memory = int(seconds)
                continue
            if kind in STATUS_KINDS:
                self._on_status(worker, kind, payload)
                continue
            work = worker.remove_call(call_id)
            if work is None:
                continue
            del self._placed[work]
            work.location = worker.location
            if kind == GIVEN_BACK and not work.interrupted:
                given_back.append((work, worker.mode))
                continue
            ended, busy_seconds = ended + 1, busy_seconds + seconds
            if work.started is None and seconds:  # too short for a report of its start
                work.started = max(work.submitted, time.monotonic() - seconds)
            self._report(work, kind, payload)
        if given_back:
            self._waiting.put_back(given_back[::-1])
        if worker.is_disconnected:
            self._on_end(worker)
            self._assign_all()
            return
        if ended:
            worker.stalled = False
            worker.last_progress = self._loop.time()
            if worker.mode == EXCLUSIVE:
                worker.adapt_window(ended, busy_seconds)
        self._continue(worker, bool(given_back))

    def _on_status(self, worker: WorkerState, kind: int, payload: Any) -> None:
        if kind == READY:
            self._on_ready(worker, payload[0])
        elif kind == DROPPED:
            self._control.on_dropped(worker, payload)
        elif kind == PONG:
            worker.last_pong = self._loop.time()
        else:
            worker.is_disconnected = True
            if not worker.has_exited:
                self._control.reap(worker)

    def _report(self, work: Work, kind: int, payload: Any) -> None:
        self._reruns.pop(work, None)
        if kind == VALUE:
            self._reports.report_done(work, {"return_value": payload})
        elif kind == FIELDS:
            self._reports.report_done(work, payload)
        elif kind == RAISED:
            self._reports.report_failed(work, payload)
        elif kind == NOT_REBUILT:
            self._reports.report_failed(work, not_rebuilt(work.uid, payload))
        else:
            work.keep_output(payload or {})
            self._reports.report_cancelled(work)

    def _continue(self, worker: WorkerState, gave_back: bool) -> None:
        if worker.retiring:
            if not worker.calls:
                self._end_retired(worker)
            return
        self._assign(worker)
        if self._reservations.any_waits:
            self._serve_reservations()
        if gave_back:
            self._assign_all()
        if not worker.calls and not self._waiting:
            self._check_stalls_soon()

    def _end_retired(self, worker: WorkerState) -> None:
        if worker.own is None:
            self._control.kill(worker)
        elif not worker.stopping:
            worker.stopping = True
            self._control.send(worker, STOP)
            self._loop.call_later(STOP_SECONDS, self._control.kill, worker)

    def on_unsent(self, number: int, call_id: int, error: BaseException) -> None:
        """Fail a call that could not be sent to its worker."""
        worker = self._workers.get(number)
        work = worker.remove_call(call_id) if worker is not None else None
        if worker is None or work is None:
            return
        del self._placed[work]
        self._report(work, RAISED, error)
        self._continue(worker, gave_back=False)

    # -- idle workers get calls of busy ones ------------------------------------------------------

    def _check_stalls_soon(self) -> None:
        if self._stall_check is None and self._with_waiting_calls and not self._stopping:
            self._stall_check = self._loop.call_later(STALL_SECONDS, self._check_stalls)

    def _check_stalls(self) -> None:
        self._stall_check = None
        if not self._reservations.any_waits and (self._waiting or not self._idle):
            return
        now = self._loop.time()
        for worker in tuple(self._with_waiting_calls):
            if now - worker.last_progress < STALL_SECONDS:
                self._check_stalls_soon()
                continue
            worker.mark_stalled()
            self._classify(worker)
            self._control.send(worker, GIVE_BACK)

    # -- cancellation -----------------------------------------------------------------------------

    def cancel(self, work: Work) -> bool:
        """Interrupt a task; its end is reported later. Return False if the task is not here."""
        if self._waiting.remove(work):
            self._reruns.pop(work, None)
            self._reports.report_cancelled(work)
            return True
        if work not in self._placed:
            return self._cancel_own_start(work)
        worker, call_id = self._placed[work]
        if not self._cancelling:
            self._loop.call_soon(self._send_cancels)
        self._cancelling.setdefault(worker, []).append(call_id)
        self._loop.call_later(self._grace, self._on_grace_over, work, worker, call_id)
        return True

    def _cancel_own_start(self, work: Work) -> bool:
        """Cancel a task whose own worker starts; return False if there is no such worker."""
        worker = self._own.get(work)
        if worker is None or worker.pid:
            return False
        self._control.kill(worker)
        self._reports.report_cancelled(work)
        return True

    def _send_cancels(self) -> None:
        cancelling, self._cancelling = self._cancelling, {}
        for worker, call_ids in cancelling.items():
            if worker.number in self._workers:
                self._control.send(worker, CANCEL, call_ids)

    def _on_grace_over(self, work: Work, worker: WorkerState, call_id: int) -> None:
        if self._placed.get(work) != (worker, call_id) or worker.number not in self._workers:
            return
        if worker.running and call_id not in worker.running:
            # Another task, which goes on, keeps the worker from reading the cancellation.
            self._report_cancelled(work, worker, call_id)
            self._classify(worker)
        elif worker.mode == CONCURRENT and len(worker.calls) > 1:
            # The worker's other calls may go on; it is killed when they have ended.
            self._report_cancelled(work, worker, call_id)
            self._retire(worker)
            self._control.send(worker, PING)
            patience = max(self._grace, PING_SECONDS)
            self._loop.call_later(patience, self._kill_if_blocked, worker, self._loop.time())
        else:
            logger.warning(
                "task %s did not end within %g s of its cancellation; its worker is replaced",
                work.uid,
                self._grace,
            )
            self._retire(worker)
            self._control.kill(worker)
            self._loop.call_later(
                LAST_MESSAGES_SECONDS, self._report_cancelled, work, worker, call_id
            )

    def _kill_if_blocked(self, worker: WorkerState, since: float) -> None:
        if worker.number in self._workers and worker.last_pong < since:
            logger.warning(
                "backend '%s': worker %d is blocked by a cancelled async function and is replaced",
                self._name,
                worker.number,
            )
            self._control.kill(worker)

    def _retire(self, worker: WorkerState) -> None:
        worker.retiring = True
        self._classify(worker)

    def _report_cancelled(self, work: Work, worker: WorkerState, call_id: int) -> None:
        if self._placed.get(work) == (worker, call_id):
            worker.remove_call(call_id)
            del self._placed[work]
            self._reruns.pop(work, None)
            self._reports.report_cancelled(work)

    # -- start and end of workers -----------------------------------------------------------------

    def _on_ready(self, worker: WorkerState, pid: int) -> None:
        self._failed_starts.clear()
        worker.pid = pid
        worker.location = worker.location._replace(pid=pid)
        worker.last_progress = self._loop.time()
        if worker.own is not None:
            if not worker.retiring:  # its task was not cancelled
                self._start_own_call(worker, worker.own)
            return
        self._classify(worker)
        if not self._waiting:
            self._check_stalls_soon()

    def on_exit(self, number: int, exit_code: int | None) -> None:
        """Note that a worker's process has ended."""
        worker = self._workers.get(number)
        if worker is not None:
            worker.has_exited = True
            worker.exit_code = exit_code
            if not worker.pid:
                worker.is_disconnected = True  # it never connected
            self._on_end(worker)

    def on_node_lost(self, node: Node) -> None:
        """Treat all workers of a node as ended: none of their messages can arrive."""
        lost = [worker for worker in self._workers.values() if worker.node == node]
        for worker in lost:  # all of them, before their calls are given to other workers
            worker.running.update(worker.calls)
            worker.is_disconnected = worker.has_exited = True
            self._classify(worker)
        for worker in lost:
            if not worker.pid:  # it may still start, and would be unknown here
                self._control.kill(worker)
            self._on_end(worker)

    def _on_end(self, worker: WorkerState) -> None:
        self._classify(worker)
        if not (worker.is_disconnected and worker.has_exited):
            return
        del self._workers[worker.number]
        self._busy.discard(worker)
        self._workers_on[worker.node] -= 1
        self._cancelling.pop(worker, None)
        self._control.on_end(worker)
        if not self._workers:
            self._all_ended.set()
        if worker.own is not None:
            del self._own[worker.own.work]
        if self._stopping:
            if worker.own is not None:
                worker.own.on_end()
            return
        if not worker.retiring:
            logger.warning(
                "backend '%s': worker %d on node %s %s",
                self._name,
                worker.number,
                worker.node.name,
                worker.exit_description,
            )
        if worker.own is not None:
            self._on_own_end(worker, worker.own)
            return
        if not worker.pid and not worker.retiring:
            self._on_failed_start(worker)
        self._waiting.put_back([(work, worker.mode) for work in self._settle_calls(worker)])
        self._serve_reservations()
        self._assign_all()
        self._start_missing_workers()

    def _on_own_end(self, worker: WorkerState, call: OwnCall) -> None:
        if not worker.pid and not worker.retiring:
            self._failed_starts.add(worker)
            if not self._failed_starts.are_final:
                self.submit_alone(call)
                return
            self._reports.report_failed(
                call.work, BackendError(self._name, self._failed_starts.reason)
            )
            self._failed_starts.clear()
        elif self._settle_calls(worker):
            self.submit_alone(call)
            return
        call.on_end()

    def _on_failed_start(self, worker: WorkerState) -> None:
        if self._start_pause is not None:
            return  # it was killed together with the one that the pause follows
        pause = self._failed_starts.add(worker)
        if not self._failed_starts.are_final:
            if pause:
                self._start_pause = self._loop.call_later(pause, self._end_start_pause)
            return
        error = BackendError(self._name, self._failed_starts.reason)
        self._failed_starts.clear()
        others = sum(w.own is None and not w.retiring for w in self._workers.values())
        if others:  # they are ready, or may become so; there may be no room for more
            self._limit = others
            if self._limit_end is None:
                self._limit_end = self._loop.call_later(LIMIT_SECONDS, self._end_limit)
            return
        for work in self._waiting.clear():
            self._reports.report_failed(work, error)

    def _end_start_pause(self) -> None:
        self._start_pause = None
        self._start_missing_workers()

    def _end_limit(self) -> None:
        self._limit_end = None
        self._limit = self._most
        self._start_missing_workers()

    def _settle_calls(self, dead: WorkerState) -> list[Work]:
        """Fail what a dead worker was running; return what is to run again, or has not begun."""
        again = []
        for call_id, work in dead.calls.items():
            del self._placed[work]
            reruns = self._reruns.get(work, 0)
            if work.interrupted:
                self._report(work, CANCELED, None)
            elif call_id not in dead.running:
                again.append(work)
            elif reruns < (work.options.get("retries") or 0):
                self._reruns[work] = reruns + 1
                again.append(work)
            else:
                reason = (
                    f"the worker process that ran it, on node {dead.node.name}, "
                    f"{dead.exit_description}. Usual causes: it used more memory than there is, or "
                    "it crashed the interpreter"
                )
                self._report(work, RAISED, WorkerDied(work.uid, reason))
        dead.calls.clear()
        return again

    async def stop(self) -> None:
        """Stop all workers, after every task has ended."""
        self._stopping = True
        for timer in (self._stall_check, self._start_pause, self._limit_end):
            if timer is not None:
                timer.cancel()
        for worker in self._workers.values():
            if worker.is_ready:
                self._control.send(worker, STOP)
            else:
                self._control.kill(worker)
        self._all_ended.clear()
        if not await self._ended_within(STOP_SECONDS):
            for worker in self._workers.values():
                self._control.kill(worker)
            if not await self._ended_within(KILL_SECONDS):
                logger.error("backend '%s': workers did not end when they were killed", self._name)

    async def _ended_within(self, seconds: float) -> bool:
        return not self._workers or await done_within(self._all_ended.wait(), seconds)
