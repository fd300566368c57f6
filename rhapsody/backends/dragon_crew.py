"""The processes of a Dragon backend, agents and workers: started, watched, spoken to and ended.

Dragon's calls block, so each kind has its thread: one sends, one receives, and one for each lot of
processes starts them and waits for their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
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
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rhapsody.api.errors import BackendError, TaskExecutionError
from rhapsody.backends import dragon_agent, dragon_worker
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_jobs import Jobs
from rhapsody.backends.dragon_pool import Pool
from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.dragon_seat import CONCURRENT, Seat
from rhapsody.backends.executables import Executable
from rhapsody.backends.process_calls import load_outcome
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work
from rhapsody.processes import child_environment
from rhapsody.waiting import done_within

__all__ = ["DragonCrew"]

logger = logging.getLogger(__name__)

AGENT_SECONDS = 60.0
"""How long the agents of all hosts may take to be there."""

STOP_SECONDS = 10.0
"""How long agents may take to end: milliseconds, but one that is only starting has to be there
first. An agent that is killed leaves its directory behind."""

RESPAWN_SECONDS = 1.0
"""Time between the end of an agent and the start of another."""

MESSAGE_BYTES = 4 * 1024 * 1024
"""A message of so many bytes takes no more calls."""

DRAINED = 64
"""Messages taken in before the service loop hears of them."""

CAPACITY = 4096
"""Messages that may wait for the head before agents do."""


class _Agent:
    """The agent of one host, as the head sees it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: Any = None
        self.inbox: Any = None
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()


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
        self._address = dragon_agent.Address(f"rhapsody-dragon-{uuid.uuid4().hex[:12]}")
        self._agents = {host.name: _Agent(host) for host in hosts}
        self._letters: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._due: dict[Any, int] = {}
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._collects = gc.isenabled()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._numbers = itertools.count(1)
        self.pool: Pool | None = None
        self.jobs: Jobs | None = None

    async def open(self) -> None:
        """Start the agents and the threads, and wait until the agents are there.

        Raises:
            BackendError: An agent did not start.
        """
        from dragon.native.queue import Queue
        from dragon.utils import host_id

        self._host_id = host_id()
        self._inbox = await asyncio.to_thread(Queue, maxsize=CAPACITY, block_size=1024)
        for target, name in ((self._send_all, "out"), (self._receive_all, "in")):
            self._threads.append(_thread(target, name))
        agents = list(self._agents.values())
        for agent in agents:
            self.expect(agent.host.name, 1)
        _thread(self._start_agents, "watch", agents)
        try:
            ready = await done_within(_all(agent.ready for agent in agents), AGENT_SECONDS)
            if not ready or any(agent.inbox is None for agent in agents):
                lacking = [agent.host.name for agent in agents if agent.inbox is None]
                raise BackendError(
                    self._name,
                    f"its agent did not start on {', '.join(lacking)}; what it wrote to standard "
                    "error says why",
                )
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release everything, once all workers have ended."""
        self._closing = True
        agents = list(self._agents.values())
        for agent in agents:
            if agent.inbox is not None:
                self._letters.put(functools.partial(agent.inbox.put, b""))
        self._letters.put(None)
        if not await done_within(_all(agent.ended for agent in agents), STOP_SECONDS):
            for agent in agents:
                if not agent.ended.is_set():
                    self._loop.run_in_executor(None, _kill, agent)
        await asyncio.to_thread(self._inbox.put, b"")
        self._wanted.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._inbox.destroy)

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
        for seat in seats:
            self.expect(seat.number, 1)
        _thread(self._start_workers, "watch", seats)

    def _start_workers(self, seats: Sequence[Seat]) -> None:
        alive = {}
        for seat in seats:
            try:
                seat.process = _start(seat.host, dragon_worker.serve, self.setup(seat.number))
            except Exception as error:
                logger.error("backend '%s': no worker on %s: %s", self._name, seat.host.name, error)
                self._tell_pool("on_death", seat.number, None)
                continue
            alive[seat.process.puid] = seat
            if seat.retiring:  # killed before it was there
                _kill(seat)
        while alive:
            for puid, exit_code in _ended(list(alive)):
                seat = alive.pop(puid)
                self.expect(seat.number, 1)  # its last note
                self._tell_pool("on_death", seat.number, exit_code)

    def _start_agents(self, agents: Sequence[_Agent]) -> None:
        alive = {}
        for agent in agents:
            arguments = (self._address, agent.host.name, self._inbox, os.getpid(), self._host_id)
            try:
                agent.process = _start(agent.host, dragon_agent.serve, *arguments)
            except Exception as error:
                logger.error("backend '%s': no agent on %s: %s", self._name, agent.host.name, error)
                self._loop.call_soon_threadsafe(self._on_agent_end, agent)
            else:
                alive[agent.process.puid] = agent
        while alive:
            for puid, _ in _ended(list(alive)):
                self._loop.call_soon_threadsafe(self._on_agent_end, alive.pop(puid))

    def _on_agent_end(self, agent: _Agent) -> None:
        agent.ended.set()
        agent.ready.set()  # there is nothing more to wait for
        if self._closing or self.pool is None:
            return
        logger.error("backend '%s': its agent on %s has ended", self._name, agent.host.name)
        successor = self._agents[agent.host.name] = _Agent(agent.host)
        self.pool.on_host_lost(agent.host)
        if self.jobs is not None:
            self.jobs.on_host_lost(agent.host)
        self.expect(agent.host.name, 1)
        self._loop.call_later(RESPAWN_SECONDS, self._restart, successor)

    def _restart(self, agent: _Agent) -> None:
        if self._closing:
            agent.ended.set()
        else:
            _thread(self._start_agents, "watch", [agent])

    def ping(self, seat: Seat) -> None:
        """Have a worker's loop say that it is not blocked."""
        self.expect(seat.number, 1)
        self.tell(seat, wire.PING)

    def kill(self, seat: Seat) -> None:
        """Kill a worker."""
        seat.retiring = True
        if seat.process is not None:
            self._loop.run_in_executor(None, _kill, seat)

    def forget(self, number: int) -> None:
        """Expect nothing more of a worker."""
        with self._lock:
            self._due.pop(number, None)

    # -- messages out -----------------------------------------------------------------------------

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls (task, token) to a worker."""
        self.expect(seat.number, len(calls))
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
        """Send a message to a worker of a host; blocks for a moment."""
        inbox = self._agents[host].inbox
        if inbox is None:
            raise BackendError(self._name, f"its agent on {host} is not there")
        inbox.put(pickle.dumps((number, message), protocol=5))

    def expect(self, sender: int | str, count: int) -> None:
        """Expect so many notes of a worker, or of a host's agent."""
        with self._lock:
            self._due[sender] = self._due.get(sender, 0) + count
        self._wanted.set()

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
        self._count_off(seat.number, 1)
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
            bundles: list[tuple[int, list[wire.Note]]] = []
            for message in map(pickle.loads, messages):
                if isinstance(message, tuple):
                    self._count_off(message[0], 1)
                    self._loop.call_soon_threadsafe(self._on_agent_ready, *message)
                else:
                    bundles += [self._read(*bundle) for bundle in message]
            if bundles:
                self._loop.call_soon_threadsafe(self._deliver, bundles)
            del messages, bundles

    def _read(self, number: int, notes: list[wire.Note]) -> tuple[int, list[wire.Note]]:
        begun = (wire.BEGUN, wire.BEGUN_URGENTLY)
        self._count_off(number, sum(note[1] not in begun for note in notes))
        return number, [_rebuilt(*note) for note in notes]

    def _count_off(self, number: Any, count: int) -> None:
        with self._lock:
            if number in self._due:
                self._due[number] -= count
                if self._due[number] <= 0:
                    del self._due[number]
            if not self._due:
                self._wanted.clear()

    def _on_agent_ready(self, host: str, _pid: int, inbox: Any) -> None:
        agent = self._agents[host]
        agent.inbox = inbox
        agent.ready.set()
        if self._closing:  # too late for it to be told with the others
            self._loop.run_in_executor(None, inbox.put, b"")

    def _deliver(self, bundles: list[tuple[int, list[wire.Note]]]) -> None:
        assert self.pool is not None
        assert self.jobs is not None
        for bundle in bundles:
            if not self.jobs.on_notes(*bundle):
                self.pool.on_notes(*bundle)

    def _tell_pool(self, method: str, *args: Any) -> None:
        self._loop.call_soon_threadsafe(getattr(self.pool, method), *args)


async def _all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _thread(target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
    thread.start()
    return thread


def _start(host: Host, target: Callable[..., None], *args: Any) -> Any:
    from dragon.infrastructure.policy import Policy
    from dragon.native.process import Process

    process = Process(
        target=target,
        args=args,
        cwd=os.getcwd(),
        env=child_environment(),
        policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=host.name),
    )
    process.start()
    return process


def _ended(puids: list[int]) -> list[tuple[int, int | None]]:
    """Wait for one of several processes to end."""
    from dragon.globalservices.process import multi_join

    try:
        ended, _ = multi_join(puids)
    except Exception as error:
        logger.error("Dragon no longer watches its processes: %s", error)
        return [(puid, None) for puid in puids]
    return list(ended or ())


def _kill(it: Seat | _Agent) -> None:
    with contextlib.suppress(Exception):  # it has ended by itself
        it.process.kill()


def _rebuilt(token: int, word: int, seconds: float, payload: Any) -> wire.Note:
    try:
        if word in (wire.VALUE, wire.FIELDS, wire.HELLO):
            payload = pickle.loads(payload)
        elif word == wire.RAISED:
            load_outcome(payload)
    except BaseException as error:  # users' code, too, which may even exit
        return token, wire.RAISED, seconds, error.with_traceback(None)
    return token, word, seconds, payload
