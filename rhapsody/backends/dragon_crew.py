"""The worker processes of a Dragon backend: started, watched, spoken to and ended.

Dragon's calls block, so each kind has its thread: one sends, one receives, and one for each lot of
workers starts them and waits for their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import pickle
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_pool import Pool
from rhapsody.backends.dragon_seat import CONCURRENT, Seat
from rhapsody.backends.dragon_worker import Setup, serve
from rhapsody.backends.executables import Executable
from rhapsody.backends.process_calls import load_outcome
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work
from rhapsody.processes import child_environment

__all__ = ["DragonCrew"]

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4 * 1024 * 1024
"""A message of so many bytes takes no more calls."""

DRAINED = 64
"""Messages taken in before the service loop hears of them."""

CAPACITY = 4096
"""Messages that may wait for the head before workers do."""


class DragonCrew:
    """Starts, ends and speaks to workers; a `dragon_pool.Crew`.

    Args:
        name: The backend's name.
        lane_of: Says how a task is to be run.
    """

    def __init__(self, name: str, lane_of: Callable[[Work], str]) -> None:
        self._name = name
        self._lane_of = lane_of
        self._loop = asyncio.get_running_loop()
        self._records = uuid.uuid4().hex[:12]
        self._letters: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._due: dict[int, int] = {}
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._collects = gc.isenabled()
        self._threads: list[threading.Thread] = []
        self.pool: Pool | None = None

    async def open(self) -> None:
        """Make the queue that workers answer to, and start the threads."""
        from dragon.native.queue import Queue
        from dragon.utils import host_id

        self._host = host_id()
        self._inbox = await asyncio.to_thread(Queue, maxsize=CAPACITY, block_size=1024)
        for target, name in ((self._send_all, "out"), (self._receive_all, "in")):
            thread = threading.Thread(target=target, name=f"rhapsody-dragon-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def close(self) -> None:
        """Release everything, once all workers have ended."""
        self._letters.put(None)
        await asyncio.to_thread(self._inbox.put, b"")
        self._wanted.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._inbox.destroy)
        for left in (
            Setup(0, 0, 0, self._records, (), ())
            .record(0)
            .parent.glob(f"rhapsody-dragon-{self._records}-*")
        ):
            left.unlink(missing_ok=True)

    # -- processes --------------------------------------------------------------------------------

    def start(self, seats: Sequence[Seat]) -> None:
        """Start workers."""
        self._expect({seat.number: 1 for seat in seats})
        threading.Thread(
            target=self._start_and_watch,
            args=(seats,),
            name="rhapsody-dragon-watch",
            daemon=True,
        ).start()

    def _start_and_watch(self, seats: Sequence[Seat]) -> None:
        alive = {}
        for seat in seats:
            try:
                seat.process = self._start_one(seat)
            except Exception as error:
                self._tell_pool("on_start_failure", [seat], error)
            else:
                alive[seat.process.puid] = seat
                if seat.retiring:  # killed before it was there
                    _kill(seat)
        while alive:
            for puid, exit_code in _ended(list(alive)):
                self._tell_pool("on_death", alive.pop(puid).number, exit_code)

    def _start_one(self, seat: Seat) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import Process

        setup = Setup(
            number=seat.number,
            head_pid=os.getpid(),
            head_host=self._host,
            records=self._records,
            predecessors=tuple(seat.predecessors),
            path=tuple(os.path.abspath(entry) for entry in sys.path),
        )
        process = Process(
            target=serve,
            args=(setup, self._inbox),
            cwd=os.getcwd(),
            env=child_environment(),
            policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=seat.host.name),
        )
        process.start()
        return process

    def kill(self, seat: Seat) -> None:
        """Kill a worker."""
        seat.retiring = True
        if seat.process is not None:
            self._loop.run_in_executor(None, _kill, seat)

    def forget(self, seat: Seat) -> None:
        """Release what belonged to a worker that has ended."""
        with self._lock:
            self._due.pop(seat.number, None)
        if seat.inbox is not None:
            self._loop.run_in_executor(None, seat.inbox.destroy)

    # -- messages out -----------------------------------------------------------------------------

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int, int]]) -> None:
        """Send calls (task, token, slot) to a worker."""
        self._expect({seat.number: len(calls)})
        self._letters.put(functools.partial(self._send_calls, seat, calls))

    def tell(self, seat: Seat, *message: Any) -> None:
        """Send any other message to a worker."""
        self._letters.put(functools.partial(seat.inbox.put, pickle.dumps(message, protocol=5)))

    def _expect(self, numbers: dict[int, int]) -> None:
        with self._lock:
            for number, count in numbers.items():
                self._due[number] = self._due.get(number, 0) + count
        self._wanted.set()

    def _send_all(self) -> None:
        while (letter := self._letters.get()) is not None:
            try:
                letter()
            except Exception as error:
                logger.warning("backend '%s': a message was not sent: %s", self._name, error)

    def _send_calls(self, seat: Seat, calls: Sequence[tuple[Work, int, int]]) -> None:
        pack = wire.Pack()
        for work, token, slot in calls:
            try:
                pack.add(self._call(pack, work, token, slot))
            except Exception as error:
                self._unsent(seat, [token], error)
            if pack.size > MESSAGE_BYTES:
                self._put(seat, pack)
                pack = wire.Pack()
        self._put(seat, pack)

    def _call(self, pack: wire.Pack, work: Work, token: int, slot: int) -> wire.Call:
        task, function, arguments, executable = work.task, -1, None, None
        if work.kind == EXECUTABLE:
            executable = Executable.from_task(task, work.work_dir)
        else:
            function = pack.add_function(work.uid, task["function"])
            arguments = wire.dump_arguments(
                work.uid, task.get("args") or (), task.get("kwargs") or {}
            )
        return wire.Call(
            token=token,
            slot=slot,
            uid=work.uid,
            urgent=work.timeout is not None,
            concurrent=self._lane_of(work) == CONCURRENT,
            function=function,
            arguments=arguments,
            capture=os.path.join(work.work_dir, work.uid) if task.get("capture_stdio") else None,
            executable=executable,
        )

    def _put(self, seat: Seat, pack: wire.Pack) -> None:
        if not pack.calls:
            return
        try:
            seat.inbox.put(pack.dump())
        except Exception as error:
            for call in pack.calls:
                reason = TaskExecutionError(call.uid, f"it could not be sent to a worker: {error}")
                self._unsent(seat, [call.token], reason)

    def _unsent(self, seat: Seat, tokens: Sequence[int], error: Exception) -> None:
        self._count_off(seat.number, len(tokens))
        for token in tokens:
            self._tell_pool("on_unsent", seat.number, token, error)

    # -- messages in ------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        while True:
            # Not in the queue while nothing is due: a wait there takes a percent of a CPU.
            self._wanted.wait()
            messages = [self._inbox.get()]
            with contextlib.suppress(queue.Empty):
                while len(messages) < DRAINED:
                    messages.append(self._inbox.get_nowait())
            if self._collects:
                gc.enable()  # Dragon disables it for as long as somebody waits for a process
            if b"" in messages:
                return
            self._loop.call_soon_threadsafe(self._deliver, [self._read(m) for m in messages])
            del messages

    def _read(self, message: bytes) -> tuple[int, list[tuple[int, int, Any]], float]:
        number, notes, busy = pickle.loads(message)
        self._count_off(number, sum(word != wire.BEGUN for _, word, _ in notes))
        return number, [_rebuilt(*note) for note in notes], busy

    def _count_off(self, number: int, count: int) -> None:
        with self._lock:
            if number in self._due:
                self._due[number] -= count
                if self._due[number] <= 0:
                    del self._due[number]
            if not self._due:
                self._wanted.clear()

    def _deliver(self, messages: list[tuple[int, list[tuple[int, int, Any]], float]]) -> None:
        assert self.pool is not None
        for message in messages:
            self.pool.on_notes(*message)

    def _tell_pool(self, method: str, *args: Any) -> None:
        self._loop.call_soon_threadsafe(getattr(self.pool, method), *args)


def _rebuilt(token: int, word: int, payload: Any) -> tuple[int, int, Any]:
    if word not in (wire.PICKLED, wire.RAISED):
        return token, word, payload
    try:
        return token, wire.VALUE, load_outcome(payload)
    except Exception as error:
        return token, wire.RAISED, error.with_traceback(None)


def _ended(puids: list[int]) -> list[tuple[int, int | None]]:
    """Wait for one of several processes to end."""
    from dragon.globalservices.process import multi_join

    try:
        ended, _ = multi_join(puids)
    except Exception as error:
        logger.error("Dragon no longer watches its processes: %s", error)
        return [(puid, None) for puid in puids]
    return list(ended or ())


def _kill(seat: Seat) -> None:
    with contextlib.suppress(Exception):  # it has ended by itself
        seat.process.kill()
