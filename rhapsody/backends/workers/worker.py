"""The program of a worker process: takes calls from its connection and sends their outcomes back.

A thread reads messages, so that a call can be cancelled or given back while another runs. Calls run
in the main thread, where a signal can interrupt them: sync functions and executables one at a
time, async functions concurrently on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rhapsody.backends.data.client import DataClient
from rhapsody.backends.data.packing import Packed
from rhapsody.backends.data.segments import Folders
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.backends.workers.function_cache import FunctionCache
from rhapsody.backends.workers.interrupts import (
    INTERRUPT,
    Interrupted,
    SyncInterrupted,
    interruptible_task,
)
from rhapsody.backends.workers.limits import PeakMemory, ResourceLimits, WorkingDirectory
from rhapsody.backends.workers.messages import (
    CANCEL,
    CANCELED,
    DROPPED,
    FIELDS,
    GIVE_BACK,
    GIVEN_BACK,
    MEMORY,
    PACKED_VALUE,
    PING,
    PONG,
    RAISED,
    RUN,
    RUNNING,
    RUNNING_URGENT,
    TAKE_BACK,
    TRIM,
    Call,
    encode_value,
)
from rhapsody.backends.workers.pickling import dump_error
from rhapsody.backends.workers.program_connection import ProgramConnection
from rhapsody.backends.workers.stdio import (
    StandardDescriptors,
    captured,
    restore_stdio,
    route_stdio,
)
from rhapsody.errors import TaskExecutionError
from rhapsody.processes import SECRET_VARIABLES, end_forked_child

__all__ = ["WorkerSetup", "import_path", "serve"]


AGAIN_SECONDS = 0.02
"""How long an interrupt waits for the end of a finalizer."""

DATA_CODE = "rhapsody.backends.data."

MEASURED_SECONDS = 0.001
"""Duration of calls after which memory and standard descriptors are looked at, which takes 5 and 2
microseconds. Of shorter calls, the descriptors are looked at after the last one that waits."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker process needs to start.

    Attributes:
        number: Its number within the backend.
        address: Unix socket of its node's `Connections`; "" if it inherits its connection.
        path: The program's `sys.path`.
        data: The folders of the store for large data. None: it travels in messages.
    """

    number: int
    address: str
    path: tuple[str, ...]
    data: Folders | None = None


def import_path() -> tuple[str, ...]:
    """Return this program's `sys.path` for its workers, whose working directory may be another."""
    with contextlib.suppress(FileNotFoundError):  # the working directory was removed
        return tuple(os.path.abspath(entry) for entry in sys.path)
    return tuple(entry for entry in sys.path if os.path.isabs(entry))


class _ActiveCall:
    """A call that this worker has received and not yet reported the end of."""

    __slots__ = (
        "_interrupted",
        "arguments",
        "call",
        "cancelling",
        "functions",
        "in_loop",
        "in_user_code",
        "large",
        "output",
        "task",
    )

    def __init__(self, call: Call, functions: Sequence[bytes]) -> None:
        self.call = call
        self.arguments = call.arguments  # until they are loaded
        self.functions = functions
        self.cancelling = False
        self.in_loop = False
        self.in_user_code = False
        self.large: Any = None  # arguments and result; freeing them takes milliseconds
        self.output: dict[str, Any] = {}
        self.task: asyncio.Task[None] | None = None
        self._interrupted = False

    # An async function is interrupted once: by a cancellation of its asyncio task, or, if its own
    # code blocks the loop, by an exception. A second one would interrupt its clean-up.

    def cancel_task(self) -> None:
        """Cancel the asyncio task, unless the function has been interrupted; on the loop."""
        if self.task is not None and not self._interrupted:
            self._interrupted = True
            self.task.cancel()

    def interrupt(self) -> None:
        """Raise an exception, if the function is to be cancelled; in a signal handler."""
        if self.cancelling and not self._interrupted:
            self._interrupted = True
            raise Interrupted("cancelled")


class _Worker:
    def __init__(self, setup: WorkerSetup, connection: ProgramConnection) -> None:
        self._connection = connection
        self._data: DataClient | None = None
        if setup.data is not None:
            self._data = DataClient(setup.data, setup.number, self._wake_to_send_dropped)
        self._backlog: deque[_ActiveCall] = deque()
        self._active: dict[int, _ActiveCall] = {}
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._exclusive: _ActiveCall | None = None
        self._concurrent: dict[asyncio.Task[None], _ActiveCall] = {}
        self._functions = FunctionCache()
        self._children = GuardedGroups()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._flush_scheduled = False
        self._pack = None if self._data is None else self._data.pack
        self._limits = ResourceLimits()
        self._limits.watch()
        self._directory = WorkingDirectory()
        self._memory = PeakMemory()
        self._descriptors = StandardDescriptors()
        self._main_thread = threading.get_ident()
        signal.signal(INTERRUPT, self._on_interrupt)

    # -- messages: the reading thread -------------------------------------------------------------

    def receive(self) -> None:
        """Read messages for as long as the process lives."""
        try:
            self._receive()
        except BaseException:  # nobody would read the next calls
            traceback.print_exc()
            self._children.close()
            os._exit(1)

    def _receive(self) -> None:
        while True:  # after STOP too: running calls may be cancelled, or the connection lost
            message = self._connection.read()
            if message is None:  # the program has most likely ended
                self._end_with_program()
            if message[0] == RUN:
                for fields in message[2]:
                    active = _ActiveCall(Call(*fields), message[1])
                    self._active[active.call.call_id] = active
                    self._backlog.append(active)
                self._wake()
            elif message[0] == CANCEL:
                for call_id in message[1]:
                    self._cancel(call_id)
                self._connection.flush()
            elif message[0] == GIVE_BACK:
                self._give_back()
            elif message[0] == PING:
                self._loop.call_soon_threadsafe(self._send_pong)
            elif message[0] == TAKE_BACK and self._data is not None:
                self._data.take_back(*message[1:])
            elif message[0] == TRIM and self._data is not None:
                self._data.trim()
            else:
                self._stopping = True
                self._wake()

    def _end_with_program(self) -> None:
        self._children.close()
        if self._data is not None:
            self._data.remove_if_abandoned()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # also the processes that its task started
        os._exit(1)

    def _wake(self) -> None:
        self._wake_main_thread()
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._changed.set)

    def _wake_main_thread(self) -> None:
        if self._wakeups.empty():  # else it will look for everything that is there
            self._wakeups.put(None)

    def _wake_to_send_dropped(self) -> None:
        # Perhaps during garbage collection, in any thread; no call takes a lock.
        self._wake_main_thread()
        if not self._flush_scheduled:  # the loop of a worker without async functions never runs
            self._flush_scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._flush)

    def _send_dropped(self) -> None:
        # In the main thread, after the results: they may be in segments that were arguments, and
        # the program must know that before.
        if self._data is not None and (dropped := self._data.take_dropped()):
            self._connection.write(0, DROPPED, 0.0, pickle.dumps(dropped, protocol=5))

    def _send_pong(self) -> None:
        # On the loop: a function that blocks the loop holds the PONG back.
        self._connection.write(0, PONG)
        self._connection.flush()

    def _give_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._end(self._backlog.pop(), GIVEN_BACK)
        self._connection.flush()

    def _cancel(self, call_id: int) -> None:
        active = self._active.get(call_id)
        if active is None:
            return
        active.cancelling = True
        with contextlib.suppress(ValueError):
            self._backlog.remove(active)
            self._end(active, CANCELED)
            return
        if active.task is not None:
            self._loop.call_soon_threadsafe(active.cancel_task)
        # Also for a task: its own code may block the loop, and then only a signal reaches it.
        signal.pthread_kill(self._main_thread, INTERRUPT)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if _is_data_code(frame):  # a finalizer: Python would print the exception and carry on
            arguments = self._main_thread, INTERRUPT
            threading.Timer(AGAIN_SECONDS, signal.pthread_kill, arguments).start()
            return
        active = self._exclusive
        if active is not None:
            if active.cancelling and not active.in_loop:
                raise SyncInterrupted("cancelled")
            # An async function is cancelled at its `await`, unless its own code blocks its loop.
            if interruptible_task(self._loop, frame):
                active.interrupt()
            return
        task = interruptible_task(self._loop, frame)
        concurrent = None if task is None else self._concurrent.get(task)
        if concurrent is not None and concurrent.in_user_code:
            concurrent.interrupt()

    # -- calls: the main thread -------------------------------------------------------------------

    def run(self) -> None:
        """Run calls as they arrive, until STOP."""
        while True:
            active = self._next()
            self._exclusive = None
            if active is None:
                self._send_dropped()
                self._connection.flush()
                if self._stopping:
                    break
                self._wakeups.get()
            elif active.call.concurrent:
                self._backlog.appendleft(active)
                self._loop.run_until_complete(self._run_concurrent())
                self._descriptors.restore()
            else:
                self._run_exclusive(active)
        self._children.close()

    def _next(self) -> _ActiveCall | None:
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def _send_running(self, active: _ActiveCall) -> None:
        call = active.call
        self._connection.write(call.call_id, RUNNING_URGENT if call.urgent else RUNNING)
        self._connection.flush()  # together with the outcome of the call before

    def _end(
        self, active: _ActiveCall, kind: int, seconds: float = 0.0, payload: bytes = b""
    ) -> None:
        call = active.call
        measured = call.function >= 0 and not call.concurrent and seconds >= MEASURED_SECONDS
        if measured and (peak := self._memory.read()) is not None:
            self._connection.write(call.call_id, MEMORY, peak)
        del self._active[active.call.call_id]
        if self._data is not None and isinstance(active.arguments, Packed):
            self._data.discard(active.arguments)
        self._connection.write(active.call.call_id, kind, seconds, payload)
        if active.large is not None:
            self._connection.flush()
            active.large = None

    def _end_with_error(self, active: _ActiveCall, error: BaseException, seconds: float) -> None:
        if self._connection.is_copy:
            end_forked_child(error)
        if active.cancelling:
            output = pickle.dumps(active.output, protocol=5) if active.output else b""
            self._end(active, CANCELED, seconds, output)
        else:
            self._end(active, RAISED, seconds, dump_error(active.call.uid, error))

    def _run_exclusive(self, active: _ActiveCall) -> None:
        self._send_running(active)
        began = time.perf_counter()
        try:
            try:
                kind, payload = self._outcome(active)
            finally:
                self._exclusive = None
                self._limits.restore()
                self._directory.restore()
                restore_stdio()
                if not self._backlog or time.perf_counter() - began >= MEASURED_SECONDS:
                    self._descriptors.restore()
        except BaseException as error:
            self._end_with_error(active, error, time.perf_counter() - began)
        else:
            self._end(active, kind, time.perf_counter() - began, payload)
        self._send_dropped()

    def _outcome(self, active: _ActiveCall) -> tuple[int, bytes]:
        call = active.call
        if call.executable is not None:
            fields = call.executable.run_blocking(
                self._children,
                functools.partial(self._make_interruptible, active),
                interrupted=active.output.update,
            )
            self._exclusive = None
            return FIELDS, pickle.dumps(fields, protocol=5)
        function, args, kwargs = self._load(active)
        with captured(call.uid, call.capture):
            self._make_interruptible(active)
            self._memory.reset(0 if self._data is None else self._data.resident_bytes)
            value = function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = self._await(active, value)
            self._exclusive = None
        if self._connection.is_copy:
            end_forked_child(None)
        return self._encode(active, value)

    def _encode(self, active: _ActiveCall, value: Any) -> tuple[int, bytes]:
        kind, payload = encode_value(active.call.uid, value, self._pack)
        if kind == PACKED_VALUE:
            active.large = active.large, value
        return kind, payload

    def _await(self, active: _ActiveCall, awaitable: Any) -> Any:
        """Await what a function in exclusive mode returned, on a loop that it has to itself."""
        active.in_loop = True
        try:
            active.task = self._loop.create_task(_result_of(awaitable))
            if active.cancelling:  # the task did not exist yet
                active.cancel_task()
            return self._loop.run_until_complete(active.task)
        finally:
            if left := asyncio.all_tasks(self._loop):  # as `asyncio.run` does
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # it may have been cancelled before its first step
            active.task = None
            active.in_loop = False

    def _make_interruptible(self, active: _ActiveCall) -> None:
        self._exclusive = active
        if active.cancelling:  # the signal came before the call could be interrupted
            raise SyncInterrupted("cancelled")

    async def _run_concurrent(self) -> None:
        # Starts one call per pass of the loop: if it blocks, the others can still be given back.
        while True:
            active = self._next()
            if active is not None and active.call.concurrent:
                task = self._loop.create_task(self._run_async(active))
                active.task = task
                self._concurrent[task] = active
                await asyncio.sleep(0)
                continue
            if active is not None:
                self._backlog.appendleft(active)
            if not self._concurrent:
                return
            self._changed.clear()
            if not self._backlog or active is not None:
                await self._changed.wait()

    async def _run_async(self, active: _ActiveCall) -> None:
        call = active.call
        self._send_running(active)
        began = time.perf_counter()
        try:
            if active.cancelling:
                raise asyncio.CancelledError
            function, args, kwargs = self._load(active)
            with captured(call.uid, call.capture):
                active.in_user_code = True
                try:
                    value = await function(*args, **kwargs)
                finally:
                    active.in_user_code = False
            if self._connection.is_copy:
                end_forked_child(None)
            kind, payload = self._encode(active, value)
        except BaseException as error:
            self._end_with_error(active, error, time.perf_counter() - began)
        else:
            self._end(active, kind, time.perf_counter() - began, payload)
        finally:
            if active.task is not None:
                del self._concurrent[active.task]
            if not self._concurrent:
                self._changed.set()
            if not self._flush_scheduled:  # one flush for all calls that end in a pass of the loop
                self._flush_scheduled = True
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._send_dropped()
        self._connection.flush()

    def _load(self, active: _ActiveCall) -> tuple[Any, Any, Any]:
        call = active.call
        try:
            function = self._functions.load(active.functions[call.function])
            arguments, active.arguments = active.arguments, None
            if arguments is None:
                return function, (), {}
            if isinstance(arguments, bytes):
                args, kwargs = pickle.loads(arguments)
            else:
                assert self._data is not None
                args, kwargs = active.large = self._data.load(arguments)
        except Exception as error:
            raise TaskExecutionError(
                call.uid,
                f"a worker could not load its function or arguments: {type(error).__name__}: "
                f"{error}; modules other than the main script must be importable on every node",
            ) from error
        return function, args, kwargs or {}


def _is_data_code(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _Worker.run.__code__:
        if str(frame.f_globals.get("__name__")).startswith(DATA_CODE):
            return True
        frame = frame.f_back
    return False


async def _result_of(awaitable: Any) -> Any:
    return await awaitable


def serve(setup: WorkerSetup, connected: socket.socket) -> None:
    """Make this process a worker; returns after STOP.

    Args:
        setup: The worker's setup.
        connected: The socket that connects it to the program, or to the agent of its node.
    """
    for variable in SECRET_VARIABLES:
        os.environ.pop(variable, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the program
    sys.path[:] = dict.fromkeys([*setup.path, *sys.path])
    route_stdio()
    connection = ProgramConnection(setup.number, connected)
    os.register_at_fork(after_in_child=connection.close_in_child)
    try:
        worker = _Worker(setup, connection)
    except FileNotFoundError:
        if connection.read() is None:  # the program has ended, and another worker has cleaned up
            os._exit(1)
        raise
    threading.Thread(target=worker.receive, name="rhapsody-inbox", daemon=True).start()
    worker.run()
