"""One worker process of the Dragon backend: calls in from a queue, outcomes out to another.

A thread takes messages in, so that a call can be cancelled or given back while another runs. Calls
run in the main thread, where a signal reaches them: sync functions and executables one by one,
async functions side by side on one loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import mmap
import os
import pickle
import queue
import select
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_stdio import captured, route_stdio
from rhapsody.backends.guard import GuardedGroups
from rhapsody.backends.process_calls import INTERRUPT, dump_error
from rhapsody.processes import SECRET_VARIABLES

__all__ = ["SLOTS", "Setup", "begun_in", "serve"]

SLOTS = 1024
"""Calls that a worker may have in hand at once."""

LINGER_SECONDS = 0.005
"""How long an outcome may wait for others to travel with it."""

FUNCTIONS = 128
"""Functions kept, so that those of many calls are rebuilt once."""

LARGE_FUNCTION = 1024 * 1024
"""Bytes from which a pickled function is not kept."""


@dataclass(frozen=True)
class Setup:
    """What a worker is told at its start.

    Attributes:
        number: Its number within the backend.
        head_pid: The head's process id.
        head_host: Dragon's id of the head's host.
        records: Name of the backend's records; each worker keeps one in its host's temporary
            directory.
        predecessors: Numbers of dead workers of this host whose records it is to hand in.
        path: The head's `sys.path`.
    """

    number: int
    head_pid: int
    head_host: int
    records: str
    predecessors: tuple[int, ...]
    path: tuple[str, ...]

    def record(self, number: int) -> Path:
        """Return the path of a worker's record."""
        return Path(tempfile.gettempdir(), f"rhapsody-dragon-{self.records}-{number}")


class _Interrupted(KeyboardInterrupt):
    """Raised by the signal handler in a sync function; asyncio lets it out of a loop of its own."""


class _StepInterrupted(BaseException):
    """Raised by the signal handler in an async function; the worker's loop goes on."""


class _Record:
    """Which calls have begun, in a file that outlives the process: a token for each slot."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("xb+") as file:
            file.truncate(8 * SLOTS)
            self._cells = mmap.mmap(file.fileno(), 8 * SLOTS)

    def begin(self, slot: int, token: int) -> None:
        struct.pack_into("<Q", self._cells, 8 * slot, token)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def begun_in(record: bytes, slot: int) -> int:
    """Return the token that began last in a slot; 0 for none."""
    return int(struct.unpack_from("<Q", record, 8 * slot)[0])


class _Outbox:
    """Notes on their way to the head, some in each message, none later than the linger."""

    def __init__(self, number: int, put: Callable[[bytes], None]) -> None:
        self._number = number
        self._put = put
        self._lock = threading.Lock()
        self._notes: list[tuple[int, int, Any]] = []
        self._begun: dict[int, None] = {}
        self._busy = 0.0
        self._sent = 0.0
        self._waiting = threading.Semaphore(0)
        self._armed = False
        threading.Thread(target=self._send_late, name="rhapsody-outbox", daemon=True).start()

    def begun(self, token: int, urgent: bool) -> None:
        with self._lock:
            self._begun[token] = None
        if urgent:
            self.flush()
        else:
            self._send_soon()

    def ended(self, token: int, word: int, payload: Any, seconds: float) -> None:
        with self._lock:
            self._begun.pop(token, None)
            self._notes.append((token, word, payload))
            self._busy += seconds

    def more_to_come(self) -> None:
        if len(self._notes) < wire.TOGETHER and time.perf_counter() - self._sent < LINGER_SECONDS:
            self._send_soon()
        else:
            self.flush()

    def _send_soon(self) -> None:
        if not self._armed:
            self._armed = True
            self._waiting.release()

    def _send_late(self) -> None:
        while True:
            self._waiting.acquire()
            time.sleep(LINGER_SECONDS)
            self._armed = False
            self.flush()

    def flush(self) -> None:
        with self._lock:
            notes, self._notes = self._notes, []
            begun, self._begun = self._begun, {}
            busy, self._busy = self._busy, 0.0
            if begun:
                notes = [*((token, wire.BEGUN, None) for token in begun), *notes]
            if notes:
                self._sent = time.perf_counter()
                self._put(pickle.dumps((self._number, notes, busy), protocol=5))


class _Running:
    """One call in the worker's hands."""

    __slots__ = ("call", "cancelling", "functions", "task")

    def __init__(self, call: wire.Call, functions: Sequence[bytes]) -> None:
        self.call = call
        self.functions = functions
        self.cancelling = False
        self.task: asyncio.Task[None] | None = None


class _Worker:
    def __init__(self, setup: Setup, inbox: Any, outbox: Any) -> None:
        self._inbox = inbox
        self._outbox = _Outbox(setup.number, outbox.put)
        self._record = _Record(setup.record(setup.number))
        self._backlog: deque[_Running] = deque()
        self._in_hand: dict[int, _Running] = {}
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._sync: _Running | None = None
        self._concurrent: dict[asyncio.Task[None], _Running] = {}
        self._functions: OrderedDict[bytes, Any] = OrderedDict()
        self._children = GuardedGroups()
        self._loop = asyncio.new_event_loop()
        self._more = asyncio.Event()
        self._sending = False
        self._main = threading.get_ident()
        signal.signal(INTERRUPT, self._on_interrupt)
        threading.Thread(target=self._end_with_head, args=(setup,), daemon=True).start()

    # -- messages: their thread -------------------------------------------------------------------

    def receive(self) -> None:
        while not self._stopping:
            message = pickle.loads(self._inbox.get())
            if message[0] == wire.RUN:
                for fields in message[2]:
                    running = _Running(wire.Call(*fields), message[1])
                    self._in_hand[running.call.token] = running
                    self._backlog.append(running)
            elif message[0] == wire.CANCEL:
                for token in message[1]:
                    self._cancel(token)
                self._outbox.flush()
                continue
            elif message[0] == wire.RETURN:
                self._give_back()
                continue
            else:
                self._stopping = True
            self._wake()

    def _wake(self) -> None:
        self._signals.put(None)
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._more.set)

    def _give_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                running = self._backlog.pop()
                self._end(running, wire.RETURNED, None)
        self._outbox.flush()

    def _cancel(self, token: int) -> None:
        running = self._in_hand.get(token)
        if running is None:
            return
        running.cancelling = True
        with contextlib.suppress(ValueError):
            self._backlog.remove(running)
            self._end(running, wire.CANCELED, None)
            return
        if running.task is not None:
            self._loop.call_soon_threadsafe(running.task.cancel)
        # Also where there is a task: its own code may be what blocks the loop.
        signal.pthread_kill(self._main, INTERRUPT)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        running = self._sync
        if running is not None:
            if running.cancelling:
                raise _Interrupted("cancelled")
            return
        task = asyncio.current_task(self._loop)
        if task is None or _is_asyncios(frame):
            return
        concurrent = self._concurrent.get(task)
        if concurrent is not None and concurrent.cancelling:
            raise _StepInterrupted("cancelled")

    def _end_with_head(self, setup: Setup) -> None:
        _outlive(_parents(setup))
        self._children.close()
        self._record.remove()
        os._exit(1)

    # -- calls: the main thread -------------------------------------------------------------------

    def run(self) -> None:
        """Run calls as they come, until told to stop."""
        while True:
            running = self._take()
            self._sync = None
            if running is None:
                if self._stopping:
                    break
                self._signals.get()
            elif running.call.concurrent:
                self._backlog.appendleft(running)
                self._loop.run_until_complete(self._run_concurrently())
            else:
                self._run_alone(running)
        self._outbox.flush()
        self._children.close()
        self._record.remove()

    def _take(self) -> _Running | None:
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def _begin(self, running: _Running) -> None:
        call = running.call
        self._record.begin(call.slot, call.token)
        self._outbox.begun(call.token, call.urgent)

    def _end(self, running: _Running, word: int, payload: Any, seconds: float = 0.0) -> None:
        del self._in_hand[running.call.token]
        self._outbox.ended(running.call.token, word, payload, seconds)

    def _send(self) -> None:
        self._sending = False
        if self._backlog:
            self._outbox.more_to_come()
        else:
            self._outbox.flush()

    def _end_with_error(self, running: _Running, error: BaseException, seconds: float) -> None:
        if running.cancelling:
            self._end(running, wire.CANCELED, None, seconds)
        else:
            self._end(running, wire.RAISED, dump_error(running.call.uid, error), seconds)

    def _run_alone(self, running: _Running) -> None:
        self._begin(running)
        began = time.perf_counter()
        try:
            try:
                word, payload = self._outcome(running)
            finally:
                self._sync = None
        except BaseException as error:
            self._end_with_error(running, error, time.perf_counter() - began)
        else:
            self._end(running, word, payload, time.perf_counter() - began)
        self._send()

    def _outcome(self, running: _Running) -> tuple[int, Any]:
        call = running.call
        if call.executable is not None:
            self._sync = running
            self._check(running)
            return wire.FIELDS, call.executable.run_blocking(self._children)
        function, args, kwargs = self._load(running)
        with captured(call.capture):
            self._sync = running
            self._check(running)
            value = function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = self._loop.run_until_complete(_value_of(value))
            self._sync = None
        return wire.pack_value(call.uid, value)

    def _check(self, running: _Running) -> None:
        if running.cancelling:  # asked for a moment ago, by a signal that came too early
            raise _Interrupted("cancelled")

    async def _run_concurrently(self) -> None:
        # One begins in each pass of the loop: where it blocks, the others are still to be had.
        while True:
            running = self._take()
            if running is not None and running.call.concurrent:
                task = self._loop.create_task(self._run_coroutine(running))
                running.task = task
                self._concurrent[task] = running
                await asyncio.sleep(0)
                continue
            if running is not None:
                self._backlog.appendleft(running)
            if not self._concurrent:
                return
            self._more.clear()
            if not self._backlog or running is not None:
                await self._more.wait()

    async def _run_coroutine(self, running: _Running) -> None:
        call = running.call
        self._begin(running)
        began = time.perf_counter()
        try:
            if running.cancelling:
                raise asyncio.CancelledError
            function, args, kwargs = self._load(running)
            with captured(call.capture):
                value = await function(*args, **kwargs)
            word, payload = wire.pack_value(call.uid, value)
        except BaseException as error:
            self._end_with_error(running, error, time.perf_counter() - began)
        else:
            self._end(running, word, payload, time.perf_counter() - began)
        finally:
            if running.task is not None:
                del self._concurrent[running.task]
            if not self._concurrent:
                self._more.set()
            if not self._sending:  # once for all that end in one pass of the loop
                self._sending = True
                self._loop.call_soon(self._send)

    def _load(self, running: _Running) -> tuple[Any, Any, Any]:
        call = running.call
        try:
            function = self._function(running.functions[call.function])
            args, kwargs = ((), {}) if call.arguments is None else pickle.loads(call.arguments)
        except Exception as error:
            raise TaskExecutionError(
                call.uid,
                f"a worker could not load its function or arguments: {type(error).__name__}: "
                f"{error}; what the main script does not define must be importable on every node",
            ) from error
        return function, args, kwargs or {}

    def _function(self, data: bytes) -> Any:
        function = self._functions.get(data)
        if function is None:
            function = pickle.loads(data)
            if len(data) < LARGE_FUNCTION:
                self._functions[data] = function
                if len(self._functions) > FUNCTIONS:
                    self._functions.popitem(last=False)
        return function


def _parents(setup: Setup) -> list[int]:
    # The process of the runtime that started this one, and the head where it is on this host.
    from dragon.utils import host_id

    return [os.getppid(), *([setup.head_pid] if host_id() == setup.head_host else [])]


def _outlive(pids: Sequence[int]) -> None:
    """Return when one of these processes has ended."""
    poll = select.poll()
    try:
        for pid in pids:
            poll.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # before Linux 5.3
        while all(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(1)
    else:
        poll.poll()


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def _is_asyncios(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio")


def serve(setup: Setup, outbox: Any) -> None:
    """Be a worker; returns when the head says so.

    Args:
        setup: What to know.
        outbox: The head's Dragon queue for notes.
    """
    from dragon.native.queue import Queue

    for variable in SECRET_VARIABLES:
        os.environ.pop(variable, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the head
    sys.path[:] = dict.fromkeys([*setup.path, *sys.path])
    route_stdio()
    inbox = Queue(maxsize=SLOTS, block_size=1024)
    worker = _Worker(setup, inbox, outbox)
    threading.Thread(target=worker.receive, name="rhapsody-inbox", daemon=True).start()
    records = {number: _hand_in(setup.record(number)) for number in setup.predecessors}
    ready = (os.getpid(), inbox, records)
    outbox.put(pickle.dumps((setup.number, [(0, wire.READY, ready)], 0.0), protocol=5))
    worker.run()


def _hand_in(path: Path) -> bytes | None:
    try:
        record = path.read_bytes()
    except OSError:
        return None
    path.unlink(missing_ok=True)
    return record
