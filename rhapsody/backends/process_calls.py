"""Functions called in the worker processes of an executor: pickled, marked, interruptible.

An executor of `concurrent.futures` says neither when a call starts nor in which process, and a
call that runs cannot be cancelled. So each call first sends a mark (its token and its process id)
over a datagram socket; a signal to that process, together with a flag file of the call's token,
interrupts that call and no other.
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
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle

from rhapsody.api.errors import TaskExecutionError, message_of
from rhapsody.processes import SECRET_VARIABLES
from rhapsody.scratch import Scratch

__all__ = [
    "Marks",
    "RemoteTraceback",
    "call",
    "dump_call",
    "dump_error",
    "load_outcome",
    "prepare_worker",
    "run_call",
]

INTERRUPT = signal.SIGUSR1


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in another process, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Interrupted(BaseException):
    """Raised by the signal handler inside a call that is being cancelled."""


def prepare_worker() -> None:
    """Initialise a worker process: it has no secrets, and does not outlive its parent."""
    for variable in SECRET_VARIABLES:
        os.environ.pop(variable, None)
    threading.Thread(target=_end_with_parent, name="rhapsody-watch", daemon=True).start()


def _end_with_parent() -> None:
    # A worker that waits for its next call does not notice when its parent is killed: the pipe it
    # reads from is held open by its siblings.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function, and run what it returns to its end where that can be awaited."""
    result = function(*args, **kwargs)
    return asyncio.run(_result_of(result)) if inspect.isawaitable(result) else result


async def _result_of(awaitable: Any) -> Any:
    global _current_task
    _current_task = asyncio.current_task()
    try:
        return await awaitable
    finally:
        _current_task = None


def dump_call(uid: str, function: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    """Pickle a call, closures and lambdas included.

    Raises:
        TaskExecutionError: Something in it cannot be pickled.
    """
    try:
        return bytes(cloudpickle.dumps((uid, function, args, kwargs)))
    except Exception as error:
        raise TaskExecutionError(
            uid, f"its function or arguments cannot be pickled for another process: {error}"
        ) from error


def load_outcome(data: bytes) -> Any:
    """Return what a call returned, or raise what it raised, with its remote traceback."""
    value, error, remote = pickle.loads(data)
    if error is None:
        return value
    if error.__cause__ is None:
        error.__cause__ = RemoteTraceback(remote)
    raise error


def run_call(data: bytes, token: str, directory: str) -> bytes:
    """Run one pickled call in a worker process.

    Args:
        data: From `dump_call`.
        token: Names this call in marks and flags.
        directory: Where the marks' socket and the flags are; empty for none.

    Returns:
        The pickled outcome, for `load_outcome`; never raises for what the call does.
    """
    uid = "?"
    try:
        uid, function, args, kwargs = pickle.loads(data)
        try:
            _become_interruptible(token, directory)
            value = call(function, args, kwargs)
        finally:
            _stop_being_interruptible()
    except BaseException as error:
        return dump_error(uid, error)
    try:
        return bytes(cloudpickle.dumps((value, None, None)))
    except Exception as error:
        kind = type(value).__name__
        return dump_error(
            uid, TaskExecutionError(uid, f"its result, a {kind}, cannot be pickled: {error}")
        )


def dump_error(uid: str, error: BaseException) -> bytes:
    """Pickle an exception as an outcome, or what stands in for one that cannot be rebuilt."""
    remote = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    # No future can hold a StopIteration, and what is no `Exception` would end the head's loop.
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        with contextlib.suppress(Exception):
            data = bytes(cloudpickle.dumps((None, error, remote)))
            pickle.loads(data)  # many exceptions pickle but cannot be rebuilt
            return data
    stand_in = TaskExecutionError(uid, f"it raised {type(error).__name__}: {message_of(error)}")
    return pickle.dumps((None, stand_in, remote))


_current_flag: Path | None = None
_current_task: asyncio.Task[Any] | None = None


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if _current_flag is None or not _current_flag.exists():
        return
    if _current_task is not None:
        loop = _current_task.get_loop()
        loop.call_soon_threadsafe(_current_task.cancel)
        # asyncio itself, where it is at work, would log an exception and go on. What blocks the
        # loop is the function's own code, and an exception ends that.
        if asyncio.current_task(loop) is None or _is_asyncios(frame):
            return
    raise _Interrupted("cancelled")


def _is_asyncios(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio.")


def _become_interruptible(token: str, directory: str) -> None:
    global _current_flag
    if not directory or threading.current_thread() is not threading.main_thread():
        return
    _current_flag = Path(directory, token)
    if signal.getsignal(INTERRUPT) is not _on_interrupt:
        signal.signal(INTERRUPT, _on_interrupt)
    _send_mark(token, directory)
    if _current_flag.exists():
        raise _Interrupted("cancelled before it started")


def _stop_being_interruptible() -> None:
    global _current_flag
    _current_flag = None


def _send_mark(token: str, directory: str) -> None:
    # The head may have gone, or be on another machine: a mark is a courtesy.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{token} {os.getpid()}".encode(), os.path.join(directory, "marks"))


class Marks:
    """The head's side: hears which call started in which process, and interrupts calls.

    Belongs to the loop that was running when it was made.
    """

    def __init__(self) -> None:
        self._scratch = Scratch("calls")
        self.directory = str(self._scratch.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(os.path.join(self.directory, "marks"))
        self._tokens = count()
        self._on_start: dict[str, Callable[[], None]] = {}
        self._pids: dict[str, int] = {}
        self._interrupted: set[Future[Any]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def expect(self, on_start: Callable[[], None]) -> str:
        """Return the token for a new call.

        Args:
            on_start: Called when the call has started.
        """
        token = str(next(self._tokens))
        self._on_start[token] = on_start
        return token

    def forget(self, token: str) -> None:
        """Drop what is kept of a call."""
        self._on_start.pop(token, None)
        self._pids.pop(token, None)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                token, pid = self._socket.recv(256).decode().split()
                if token in self._on_start:
                    self._pids[token] = int(pid)
                    self._on_start[token]()

    def started(self, token: str) -> bool:
        """Whether a call has started, as far as is known now."""
        self._read()
        return token in self._pids

    def interrupt(self, token: str, future: Future[Any]) -> None:
        """Interrupt a call: where it runs, or as soon as it starts.

        Args:
            token: The call's.
            future: The executor's future of this call; the call's flag stays until it is done.
        """
        flag = Path(self.directory, token)
        flag.touch()
        self._interrupted.add(future)
        future.add_done_callback(functools.partial(self._end_of_interrupted, flag))
        if self.started(token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[token], INTERRUPT)

    def _end_of_interrupted(self, flag: Path, future: Future[Any]) -> None:
        flag.unlink(missing_ok=True)
        self._interrupted.discard(future)
        if self._closed and not self._interrupted:
            self.remove_directory()

    def close(self) -> None:
        """Release the socket, and the directory as soon as no interrupted call needs its flag."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._closed = True
        if not self._interrupted:
            self.remove_directory()

    def remove_directory(self) -> None:
        """Remove the directory, from any thread."""
        self._scratch.remove()
