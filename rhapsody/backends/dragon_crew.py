"""The workers of a Dragon backend: started, spoken to, and ended.

What may block has its thread: one pickles and sends, one unpickles, and one for each lot of new
workers starts them and stays until all of them have been heard of.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import itertools
import logging
import os
import pickle
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_processes, dragon_worker
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_hub import Address, Bundle, Hub
from rhapsody.backends.dragon_jobs import Jobs
from rhapsody.backends.dragon_mail import Mail
from rhapsody.backends.dragon_pool import Pool
from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.dragon_seat import CONCURRENT, Seat
from rhapsody.backends.executables import Executable
from rhapsody.backends.process_calls import load_outcome
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work

__all__ = ["DragonCrew"]

logger = logging.getLogger(__name__)

AGENTS_EVERYWHERE = False
"""Whether the head's own host has an agent as well, for trying agents out on one host."""

MESSAGE_BYTES = 4 * 1024 * 1024
"""A message of so many bytes takes no more calls."""

LISTEN_SECONDS = 1.0
"""Time between two looks at which of the new workers have been heard of."""

END_SECONDS = 2.0
"""How long a process may take to end once its connection is closed."""

JOIN_SECONDS = 0.5
"""How long the threads of messages may take to end, which may be in users' code."""

QUICK_BYTES = 65536
"""Length of payloads that are unpickled at once, where that runs no users' code."""


class DragonCrew:
    """Starts, ends and speaks to workers; a `dragon_roles.Crew` and a `JobCrew`.

    Args:
        name: The backend's name.
        hosts: Where workers may run.
        lane_of: Says how a task is to be run.
    """

    def __init__(self, name: str, hosts: Sequence[Host], lane_of: Callable[[Work], str]) -> None:
        self._name = name
        self._lane_of = lane_of
        self._loop = asyncio.get_running_loop()
        self._address = Address(f"rhapsody-dragon-{uuid.uuid4().hex[:12]}")
        self._here = [host for host in hosts if host.is_head and not AGENTS_EVERYWHERE]
        self._hub: Hub | None = None
        others = [host for host in hosts if host not in self._here]
        self._mail = Mail(name, others, self._address, self._take_in, self._on_host_lost)
        self._letters: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unread: queue.SimpleQueue[list[Bundle] | None] = queue.SimpleQueue()
        self._reading = 0
        self._collects = gc.isenabled()
        self._threads: list[threading.Thread] = []
        self._parting: list[Seat] = []
        self._numbers = itertools.count(1)
        self.pool: Pool | None = None
        self.jobs: Jobs | None = None

    async def open(self) -> None:
        """Listen for workers, here and, by agents, on the other hosts.

        Raises:
            BackendError: An agent did not start.
        """
        await self._mail.open()
        for host in self._here:
            self._hub = Hub(host.name, self._address, self._on_bundles)
        for target, name in ((self._send_all, "out"), (self._read_all, "in")):
            self._threads.append(dragon_processes.in_thread(target, name))

    async def close(self) -> None:
        """Release everything, once all workers have ended."""
        self._letters.put(None)
        self._unread.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, JOIN_SECONDS)
        if self._hub is not None:
            self._hub.close()
        await self._mail.close()

    # -- processes --------------------------------------------------------------------------------

    def number(self) -> int:
        """Return a number for a new worker; from any thread."""
        return next(self._numbers)

    def setup(self, number: int) -> dragon_worker.Setup:
        """Return what a new worker has to know."""
        path = tuple(os.path.abspath(entry) for entry in sys.path)
        return dragon_worker.Setup(number, self._address, path)

    def start(self, seats: Sequence[Seat]) -> None:
        """Start workers."""
        dragon_processes.in_thread(self._start, "start", seats)

    def _start(self, seats: Sequence[Seat]) -> None:
        dragon_processes.for_each(self._start_one, seats)
        # From a worker's first word on its connection says when it ends.
        while silent := {seat.puid: seat for seat in seats if seat.puid and not seat.was_heard}:
            for puid, exit_code in dragon_processes.ended(list(silent), LISTEN_SECONDS):
                self._on_end(silent[puid], exit_code)

    def _start_one(self, seat: Seat) -> None:
        if seat.retiring:  # killed before its turn came
            self._on_end(seat, None)
            return
        try:
            seat.puid = dragon_processes.start(
                seat.host, dragon_worker.serve, self.setup(seat.number)
            )
        except Exception as error:
            logger.error("backend '%s': no worker on %s: %s", self._name, seat.host.name, error)
            self._on_end(seat, None)
        else:
            if seat.retiring:  # killed before it was there
                dragon_processes.kill(seat.puid)

    def see_off(self, seat: Seat) -> None:
        """Have the pool told of the end of a worker's process, which has said its last."""
        if not self._parting:
            self._loop.call_soon(self._see_off_together)
        self._parting.append(seat)

    def _see_off_together(self) -> None:
        seats, self._parting = self._parting, []
        self._loop.run_in_executor(None, self._see_off, seats)

    def _see_off(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            while not (seat.puid or seat.has_ended):  # it was quicker than Dragon's answer
                time.sleep(0.01)
        left = {seat.puid: seat for seat in seats}
        while left and (ends := dragon_processes.ended(list(left), END_SECONDS)):
            for puid, exit_code in ends:
                self._on_end(left.pop(puid), exit_code)
        for seat in left.values():
            dragon_processes.kill(seat.puid)
            self._on_end(seat, None)

    def _on_end(self, seat: Seat, exit_code: int | None) -> None:
        self._tell_pool("on_death", seat.number, exit_code)

    def _on_host_lost(self, host: Host) -> None:
        if self.pool is not None and self.jobs is not None:
            self.pool.on_host_lost(host)
            self.jobs.on_host_lost(host)

    def ping(self, seat: Seat) -> None:
        """Have a worker's loop say that it is not blocked."""
        self.tell(seat, wire.PING)

    def kill(self, seat: Seat) -> None:
        """Kill a worker."""
        seat.retiring = True
        if seat.puid:
            self._loop.run_in_executor(None, dragon_processes.kill, seat.puid)

    # -- messages out -----------------------------------------------------------------------------

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls (task, token) to a worker."""
        if len(calls) == 1 and self._letters.empty() and wire.is_small(calls[0][0].task):
            self._send_calls(seat, calls)  # sooner than another thread would
        else:
            self._letters.put(functools.partial(self._send_calls, seat, calls))

    def tell(self, seat: Seat, *message: Any) -> None:
        """Send any other message to a worker."""
        self.post(seat.host.name, seat.number, *message)

    def post(self, host: str, number: int, *message: Any) -> None:
        """Send any message to a worker of a host."""
        data = wire.dump_message(*message)
        self._letters.put(functools.partial(self.put, host, number, data))

    def put(self, host: str, number: int, message: bytes) -> None:
        """Send a message to a worker of a host; blocks for a moment where that is another one."""
        if self._hub is not None and host == self._hub.host:
            self._hub.deliver(number, message)
        else:
            self._mail.put(host, number, message)

    def _send_all(self) -> None:
        while (letter := self._letters.get()) is not None:
            try:
                letter()
            except BaseException as error:
                logger.warning("backend '%s': a message was not sent: %s", self._name, error)

    def _send_calls(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        pack = wire.Pack()
        for work, token in calls:
            try:
                pack.add(self._call(pack, work, token))
            except BaseException as error:  # users' code, such as a `__reduce__`
                self._unsent(seat, token, error)
            if pack.size > MESSAGE_BYTES:
                self._send_pack(seat, pack)
                pack = wire.Pack()
        if pack.calls:
            self._send_pack(seat, pack)

    def post_alone(self, host: str, number: int, work: Work, rank: int) -> None:
        """Send a rank its one call; raises where the call cannot be sent.

        Args:
            host: The rank's host.
            number: Its number among the workers.
            work: The task.
            rank: Its number in the job; part of the names of captured output.
        """
        pack = wire.Pack()
        call = self._call(pack, work, 1)._replace(concurrent=False)
        if call.capture is not None:
            call = call._replace(capture=f"{call.capture}.{rank}")
            if call.executable is not None:
                renamed = dataclasses.replace(call.executable, uid=f"{work.uid}.{rank}")
                call = call._replace(executable=renamed)
        pack.add(call)
        self._letters.put(functools.partial(self.put, host, number, pack.dump()))

    def _call(self, pack: wire.Pack, work: Work, token: int) -> wire.Call:
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
            uid=work.uid,
            urgent=work.timeout is not None,
            concurrent=self._lane_of(work) == CONCURRENT,
            function=function,
            arguments=arguments,
            capture=os.path.join(work.work_dir, work.uid) if task.get("capture_stdio") else None,
            executable=executable,
        )

    def _send_pack(self, seat: Seat, pack: wire.Pack) -> None:
        try:
            self.put(seat.host.name, seat.number, pack.dump())
        except Exception as error:
            for call in pack.calls:
                reason = TaskExecutionError(call.uid, f"it could not be sent to a worker: {error}")
                self._unsent(seat, call.token, reason)

    def _unsent(self, seat: Seat, token: int, error: BaseException) -> None:
        self._tell_pool("on_unsent", seat.number, token, error)

    # -- messages in ------------------------------------------------------------------------------

    def _on_bundles(self, bundles: list[Bundle]) -> None:
        # From the workers here, on the loop.
        if self._reading or not all(_is_quick(note) for _, notes in bundles for note in notes):
            self._reading += 1
            self._unread.put(bundles)
        else:
            self._deliver([_rebuilt(*bundle) for bundle in bundles])

    def _read_all(self) -> None:
        while (bundles := self._unread.get()) is not None:
            self._take_in(bundles)
            self._loop.call_soon_threadsafe(self._on_read)

    def _on_read(self) -> None:
        self._reading -= 1

    def _take_in(self, bundles: list[Bundle]) -> None:
        rebuilt = [_rebuilt(*bundle) for bundle in bundles]
        self._loop.call_soon_threadsafe(self._deliver, rebuilt)

    def _deliver(self, bundles: list[Bundle]) -> None:
        assert self.pool is not None
        assert self.jobs is not None
        if self._collects:
            gc.enable()  # Dragon disables it for as long as somebody waits for a process
        for bundle in bundles:
            if not self.jobs.on_notes(*bundle):
                self.pool.on_notes(*bundle)

    def _tell_pool(self, method: str, *args: Any) -> None:
        self._loop.call_soon_threadsafe(getattr(self.pool, method), *args)


def _is_quick(note: wire.Note) -> bool:
    return note[1] not in (wire.VALUE, wire.RAISED) and len(note[3]) < QUICK_BYTES


def _rebuilt(number: int, notes: list[wire.Note]) -> Bundle:
    return number, [_read(*note) for note in notes]


def _read(token: int, word: int, seconds: float, payload: Any) -> wire.Note:
    try:
        if word in (wire.VALUE, wire.PLAIN_VALUE):
            return token, wire.VALUE, seconds, pickle.loads(payload)
        if word in (wire.FIELDS, wire.HELLO):
            payload = pickle.loads(payload)
        elif word == wire.RAISED:
            load_outcome(payload)
    except BaseException as error:  # users' code, too, which may even exit
        return token, wire.RAISED, seconds, BaseException.with_traceback(error, None)
    return token, word, seconds, payload
