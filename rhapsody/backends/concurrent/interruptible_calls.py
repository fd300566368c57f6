"""Calls in the worker processes of a `concurrent.futures` executor: reported and interruptible.

Such an executor reports neither the start of a call nor its process, and cannot cancel a running
call. So each call first sends a start notice, its id and its process id, over a datagram socket. A
signal to that process interrupts the call whose flag, a file named by the call's id, exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from rhapsody.backends.workers.interrupts import INTERRUPT, Interrupted, interruptible_task
from rhapsody.backends.workers.limits import ResourceLimits
from rhapsody.backends.workers.pickling import dump_error, dump_outcome
from rhapsody.processes import end_if_forked
from rhapsody.scratch import Scratch

__all__ = ["CallMonitor", "call", "run_call"]

SOCKET_NAME = "starts"


def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function, and await what it returns if that is awaitable."""
    global _in_loop
    result = function(*args, **kwargs)
    if not inspect.isawaitable(result):
        return result
    try:
        _in_loop = True
        return asyncio.run(_await_interruptibly(result))
    finally:
        _in_loop = False
        if inspect.iscoroutine(result):
            result.close()  # an interrupt may have come before its first step


async def _await_interruptibly(awaitable: Any) -> Any:
    global _current_task
    _current_task = asyncio.current_task()
    try:
        if _is_interrupted():
            raise Interrupted("cancelled")  # while the loop was being made
        return await awaitable
    finally:
        _current_task = None


def run_call(data: bytes, call_id: str, directory: str) -> bytes:
    """Run one pickled call in a worker process.

    Args:
        data: From `pickling.dump_call`.
        call_id: Identifies the call in start notices and cancel flags.
        directory: Directory of the socket and the flags; empty: the call cannot be interrupted.

    Returns:
        The pickled outcome, for `pickling.load_outcome`; exceptions of the call included.
    """
    uid, limits, pid = "?", ResourceLimits(), os.getpid()
    try:
        uid, function, args, kwargs = pickle.loads(data)
        try:
            _become_interruptible(call_id, directory)
            value = call(function, args, kwargs)
        finally:
            _stop_being_interruptible()
            limits.restore()
        end_if_forked(pid)
        return dump_outcome(uid, value)
    except BaseException as error:
        end_if_forked(pid, error)
        return dump_error(uid, error)


_current_flag: Path | None = None
_current_task: asyncio.Task[Any] | None = None
_in_loop = False


def _is_interrupted() -> bool:
    return _current_flag is not None and _current_flag.exists()


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if not _is_interrupted():
        return
    if _current_task is not None:
        loop = _current_task.get_loop()
        loop.call_soon_threadsafe(_current_task.cancel)
        # If the function's own code blocks the loop, only an exception ends it.
        if interruptible_task(loop, frame) is None:
            return
    elif _in_loop:
        return  # asyncio makes or closes the loop; `_await_interruptibly` looks at the flag
    raise Interrupted("cancelled")


def _become_interruptible(call_id: str, directory: str) -> None:
    global _current_flag
    if not directory or threading.current_thread() is not threading.main_thread():
        return
    _current_flag = Path(directory, call_id)
    if signal.getsignal(INTERRUPT) is not _on_interrupt:
        signal.signal(INTERRUPT, _on_interrupt)
    _send_start_notice(call_id, directory)
    if _current_flag.exists():
        raise Interrupted("cancelled before it started")


def _stop_being_interruptible() -> None:
    global _current_flag
    _current_flag = None


def _send_start_notice(call_id: str, directory: str) -> None:
    # The program may have ended, or run on another machine; the call runs anyway.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{call_id} {os.getpid()}".encode(), os.path.join(directory, SOCKET_NAME))


class CallMonitor:
    """The program's side: learns which call started in which process, and interrupts calls.

    Belongs to the loop that runs when it is made.
    """

    def __init__(self) -> None:
        self._scratch = Scratch("calls")
        self.directory = str(self._scratch.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(os.path.join(self.directory, SOCKET_NAME))
        self._ids = count()
        self._on_start: dict[str, Callable[[int], None]] = {}
        self._pids: dict[str, int] = {}
        self._interrupted: set[Future[Any]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def register(self, on_start: Callable[[int], None]) -> str:
        """Return the id for a new call.

        Args:
            on_start: Called when the call has started, with its process id.
        """
        call_id = str(next(self._ids))
        self._on_start[call_id] = on_start
        return call_id

    def forget(self, call_id: str) -> None:
        """Drop what is kept about a call."""
        self._on_start.pop(call_id, None)
        self._pids.pop(call_id, None)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                call_id, pid = self._socket.recv(256).decode().split()
                if call_id in self._on_start:
                    self._pids[call_id] = int(pid)
                    self._on_start[call_id](int(pid))

    def has_started(self, call_id: str) -> bool:
        """Return whether the start notice of a call has arrived."""
        self._read()
        return call_id in self._pids

    def interrupt(self, call_id: str, future: Future[Any]) -> None:
        """Interrupt a call that runs, or one that waits as soon as it starts.

        Args:
            call_id: The call's id.
            future: The executor's future of this call; the call's flag is kept until it is done.
        """
        flag = Path(self.directory, call_id)
        flag.touch()
        self._interrupted.add(future)
        future.add_done_callback(functools.partial(self._on_end_of_interrupted, flag))
        if self.has_started(call_id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[call_id], INTERRUPT)

    def _on_end_of_interrupted(self, flag: Path, future: Future[Any]) -> None:
        flag.unlink(missing_ok=True)
        self._interrupted.discard(future)
        if self._closed and not self._interrupted:
            self.remove_directory()

    def close(self) -> None:
        """Close the socket, and remove the directory once no interrupted call needs its flag."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._closed = True
        if not self._interrupted:
            self.remove_directory()

    def remove_directory(self) -> None:
        """Remove the directory, from any thread."""
        self._scratch.remove()
