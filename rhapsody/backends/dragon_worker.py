"""One worker process of the Dragon backend: calls in from its host's hub, outcomes out to it.

A thread takes messages in, so that a call can be cancelled or given back while another runs. Calls
run in the main thread, where a signal reaches them: sync functions and executables one by one,
async functions side by side on one loop.
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
import struct
import sys
import threading
import time
import types
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_hub import Address, is_of_this_user
from rhapsody.backends.dragon_stdio import captured, relay_stdio, route_stdio
from rhapsody.backends.guard import GuardedGroups
from rhapsody.backends.process_calls import INTERRUPT, dump_error
from rhapsody.processes import SECRET_VARIABLES

__all__ = ["Link", "Setup", "prepare", "serve"]

CONNECT_SECONDS = 10.0
"""How long the host's hub may take to listen."""

FUNCTIONS = 128
"""Functions kept, so that those of many calls are rebuilt once."""

LARGE_FUNCTION = 1024 * 1024
"""Bytes from which a pickled function is not kept."""


@dataclass(frozen=True)
class Setup:
    """What a worker is told at its start.

    Attributes:
        number: Its number within the backend.
        address: Where its host's hub listens.
        path: The head's `sys.path`.
    """

    number: int
    address: Address
    path: tuple[str, ...]


class _Interrupted(KeyboardInterrupt):
    """Raised by the signal handler in a sync function; asyncio lets it out of a loop of its own."""


class _StepInterrupted(BaseException):
    """Raised by the signal handler in an async function; the worker's loop goes on."""


class Link:
    """The connection to the host's hub.

    Args:
        setup: Who this is, and where the hub listens.
    """

    def __init__(self, setup: Setup) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                self._socket.connect(setup.address.socket)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        if not is_of_this_user(self._socket):
            raise PermissionError("another user listens at this backend's address")
        self._input = self._socket.makefile("rb", buffering=1 << 20)
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self.write(setup.number, wire.HELLO, 0.0, pickle.dumps(os.getpid()))
        self.flush()

    def abandon(self) -> None:
        """Close this copy in a forked child, or the end of its parent would not be seen."""
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())

    def read(self) -> Any:
        """Return the next message; None when the hub has gone."""
        try:
            (length,) = struct.unpack("<Q", self._input.read(8))
            return pickle.loads(self._input.read(length))
        except (OSError, ValueError, EOFError, struct.error, pickle.UnpicklingError):
            return None

    def write(self, token: int, word: int, seconds: float = 0.0, payload: bytes = b"") -> None:
        """Add a note to what leaves with the next flush."""
        with self._lock:
            self._unsent += wire.note(token, word, seconds, payload)

    def flush(self) -> None:
        """Send what is there; a signal's exception does not cut it short."""
        with self._lock:
            data, self._unsent = self._unsent, bytearray()
            if data:
                self._socket.sendall(data)


class _Running:
    """One call in the worker's hands."""

    __slots__ = ("call", "cancelling", "functions", "inside", "task")

    def __init__(self, call: wire.Call, functions: Sequence[bytes]) -> None:
        self.call = call
        self.functions = functions
        self.cancelling = False
        self.inside = False
        self.task: asyncio.Task[None] | None = None


class _Worker:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._backlog: deque[_Running] = deque()
        self._in_hand: dict[int, _Running] = {}
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._alone: _Running | None = None
        self._together: dict[asyncio.Task[None], _Running] = {}
        self._functions: OrderedDict[bytes, Any] = OrderedDict()
        self._children = GuardedGroups()
        self._loop = asyncio.new_event_loop()
        self._more = asyncio.Event()
        self._flushing = False
        self._main = threading.get_ident()
        signal.signal(INTERRUPT, self._on_interrupt)

    # -- messages: their thread -------------------------------------------------------------------

    def receive(self) -> None:
        while True:  # after a STOP as well: what runs may be cancelled, or lose its hub
            message = self._link.read()
            if message is None:  # the hub has gone, and the head most likely with it
                self._children.close()
                os._exit(1)
            if message[0] == wire.RUN:
                for fields in message[2]:
                    running = _Running(wire.Call(*fields), message[1])
                    self._in_hand[running.call.token] = running
                    self._backlog.append(running)
                self._wake()
            elif message[0] == wire.CANCEL:
                for token in message[1]:
                    self._cancel(token)
                self._link.flush()
            elif message[0] == wire.RETURN:
                self._give_back()
            elif message[0] == wire.PING:
                self._loop.call_soon_threadsafe(self._answer)
            else:
                self._stopping = True
                self._wake()

    def _wake(self) -> None:
        self._signals.put(None)
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._more.set)

    def _answer(self) -> None:
        # On the loop: where a function blocks that, there is no answer.
        self._link.write(0, wire.PONG)
        self._link.flush()

    def _give_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._end(self._backlog.pop(), wire.RETURNED)
        self._link.flush()

    def _cancel(self, token: int) -> None:
        running = self._in_hand.get(token)
        if running is None:
            return
        running.cancelling = True
        with contextlib.suppress(ValueError):
            self._backlog.remove(running)
            self._end(running, wire.CANCELED)
            return
        if running.task is not None:
            self._loop.call_soon_threadsafe(running.task.cancel)
        # Also where there is a task: its own code may be what blocks the loop.
        signal.pthread_kill(self._main, INTERRUPT)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        running = self._alone
        if running is not None:
            if running.cancelling:
                raise _Interrupted("cancelled")
            return
        task = asyncio.current_task(self._loop)
        if task is None or _is_asyncios(frame):
            return
        together = self._together.get(task)
        if together is not None and together.cancelling and together.inside:
            raise _StepInterrupted("cancelled")

    # -- calls: the main thread -------------------------------------------------------------------

    def run(self) -> None:
        """Run calls as they come, until told to stop."""
        while True:
            running = self._take()
            self._alone = None
            if running is None:
                self._link.flush()
                if self._stopping:
                    break
                self._signals.get()
            elif running.call.concurrent:
                self._backlog.appendleft(running)
                self._loop.run_until_complete(self._run_together())
            else:
                self._run_alone(running)
        self._children.close()

    def _take(self) -> _Running | None:
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def _begin(self, running: _Running) -> None:
        call = running.call
        self._link.write(call.token, wire.BEGUN_URGENTLY if call.urgent else wire.BEGUN)
        self._link.flush()  # together with the outcome before it

    def _end(
        self, running: _Running, word: int, seconds: float = 0.0, payload: bytes = b""
    ) -> None:
        del self._in_hand[running.call.token]
        self._link.write(running.call.token, word, seconds, payload)

    def _end_with_error(self, running: _Running, error: BaseException, seconds: float) -> None:
        if running.cancelling:
            self._end(running, wire.CANCELED, seconds)
        else:
            self._end(running, wire.RAISED, seconds, dump_error(running.call.uid, error))

    def _run_alone(self, running: _Running) -> None:
        self._begin(running)
        began = time.perf_counter()
        try:
            try:
                word, payload = self._outcome(running)
            finally:
                self._alone = None
        except BaseException as error:
            self._end_with_error(running, error, time.perf_counter() - began)
        else:
            self._end(running, word, time.perf_counter() - began, payload)

    def _outcome(self, running: _Running) -> tuple[int, bytes]:
        call = running.call
        if call.executable is not None:
            fields = call.executable.run_blocking(
                self._children, functools.partial(self._may_interrupt, running)
            )
            self._alone = None
            return wire.FIELDS, pickle.dumps(fields, protocol=5)
        function, args, kwargs = self._load(running)
        with captured(call.capture):
            self._may_interrupt(running)
            value = function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = self._loop.run_until_complete(_value_of(value))
            self._alone = None
        return wire.dump_value(call.uid, value)

    def _may_interrupt(self, running: _Running) -> None:
        self._alone = running
        if running.cancelling:  # asked for a moment ago, by a signal that came too early
            raise _Interrupted("cancelled")

    async def _run_together(self) -> None:
        # One begins in each pass of the loop: where it blocks, the others are still to be had.
        while True:
            running = self._take()
            if running is not None and running.call.concurrent:
                task = self._loop.create_task(self._run_async(running))
                running.task = task
                self._together[task] = running
                await asyncio.sleep(0)
                continue
            if running is not None:
                self._backlog.appendleft(running)
            if not self._together:
                return
            self._more.clear()
            if not self._backlog or running is not None:
                await self._more.wait()

    async def _run_async(self, running: _Running) -> None:
        call = running.call
        self._begin(running)
        began = time.perf_counter()
        try:
            if running.cancelling:
                raise asyncio.CancelledError
            function, args, kwargs = self._load(running)
            with captured(call.capture):
                running.inside = True  # it is users' code that a signal may break into
                try:
                    value = await function(*args, **kwargs)
                finally:
                    running.inside = False
            word, payload = wire.dump_value(call.uid, value)
        except BaseException as error:
            self._end_with_error(running, error, time.perf_counter() - began)
        else:
            self._end(running, word, time.perf_counter() - began, payload)
        finally:
            if running.task is not None:
                del self._together[running.task]
            if not self._together:
                self._more.set()
            if not self._flushing:  # once for all that end in one pass of the loop
                self._flushing = True
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._link.flush()

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
            if len(data) < LARGE_FUNCTION and _is_stateless(function):
                self._functions[data] = function
                if len(self._functions) > FUNCTIONS:
                    self._functions.popitem(last=False)
        return function


def _is_stateless(function: Any) -> bool:
    """Whether all calls may share one function: it has no state that one could leave to another."""
    return isinstance(function, types.FunctionType) and not function.__closure__


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def _is_asyncios(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio")


def prepare(setup: Setup) -> Link:
    """Make this process one that runs users' code for a head.

    Returns:
        The connection to the host's hub.
    """
    for variable in SECRET_VARIABLES:
        os.environ.pop(variable, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the head
    sys.path[:] = dict.fromkeys([*setup.path, *sys.path])
    relay_stdio()
    route_stdio()
    link = Link(setup)
    os.register_at_fork(after_in_child=link.abandon)
    return link


def serve(setup: Setup) -> None:
    """Be a worker; returns when the head says so.

    Args:
        setup: What to know.
    """
    link = prepare(setup)
    worker = _Worker(link)
    threading.Thread(target=worker.receive, name="rhapsody-inbox", daemon=True).start()
    worker.run()
