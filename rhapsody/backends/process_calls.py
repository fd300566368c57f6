"""Functions called in the worker processes of an executor: pickled, marked, interruptible.

An executor of `concurrent.futures` says neither when a call starts nor in which process, and a
call that runs cannot be cancelled. So each call first sends a mark (its token and its process id)
over a datagram socket; a signal to that process, together with a flag file of the call's token,
interrupts that call and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import shutil
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle

from rhapsody.api.errors import TaskExecutionError

__all__ = ["Marks", "RemoteTraceback", "call", "dump_call", "load_outcome", "run_call"]

INTERRUPT = signal.SIGUSR1


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in another process, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Interrupted(BaseException):
    """Raised by the signal handler inside a call that is being cancelled."""


def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function, and run what it returns to its end where that can be awaited."""
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    if inspect.isawaitable(result):
        return asyncio.run(_result_of(result))
    return result


async def _result_of(awaitable: Any) -> Any:
    return await awaitable


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
        with _interruptible(token, directory):
            value = call(function, args, kwargs)
    except BaseException as error:
        return _dump_error(uid, error)
    try:
        return bytes(cloudpickle.dumps((value, None, None)))
    except Exception as error:
        kind = type(value).__name__
        return _dump_error(
            uid, TaskExecutionError(uid, f"its result, a {kind}, cannot be pickled: {error}")
        )


def _dump_error(uid: str, error: BaseException) -> bytes:
    remote = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            data = bytes(cloudpickle.dumps((None, error, remote)))
            pickle.loads(data)  # many exceptions pickle but cannot be rebuilt
            return data
    stand_in = TaskExecutionError(uid, f"it raised {type(error).__name__}: {error}")
    return pickle.dumps((None, stand_in, remote))


_current_flag: Path | None = None


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if _current_flag is not None and _current_flag.exists():
        raise _Interrupted("cancelled")


@contextlib.contextmanager
def _interruptible(token: str, directory: str) -> Any:
    global _current_flag
    if not directory or threading.current_thread() is not threading.main_thread():
        yield
        return
    _current_flag = Path(directory, token)
    if signal.getsignal(INTERRUPT) is not _on_interrupt:
        signal.signal(INTERRUPT, _on_interrupt)
    _send_mark(token, directory)
    if _current_flag.exists():
        raise _Interrupted("cancelled before it started")
    try:
        yield
    finally:
        _current_flag = None


def _send_mark(token: str, directory: str) -> None:
    # The head may have gone, or be on another machine: a mark is a courtesy.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{token} {os.getpid()}".encode(), os.path.join(directory, "marks"))


class Marks:
    """The head's side: hears which call started in which process, and interrupts calls.

    Args:
        on_start: Called with the token of a call that has started, on the loop that was running
            when this was made.
    """

    def __init__(self, on_start: Callable[[str], None]) -> None:
        self._on_start = on_start
        self.directory = tempfile.mkdtemp(prefix="rhapsody-calls-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(os.path.join(self.directory, "marks"))
        self._pids: dict[str, int] = {}
        self.workers: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                token, pid = self._socket.recv(256).decode().split()
                self._pids[token] = int(pid)
                self.workers.add(int(pid))
                self._on_start(token)

    def started(self, token: str) -> bool:
        """Whether a call has started, as far as is known now."""
        self._read()
        return token in self._pids

    def forget(self, token: str) -> None:
        """Drop what is kept of a call that has ended."""
        self._pids.pop(token, None)
        Path(self.directory, token).unlink(missing_ok=True)

    def interrupt(self, token: str) -> None:
        """Interrupt a call: where it runs, or as soon as it starts. Its flag stays."""
        Path(self.directory, token).touch()
        if self.started(token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[token], INTERRUPT)

    def kill_workers(self) -> None:
        """End every process that has run a call."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Release the socket and the directory."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        shutil.rmtree(self.directory, ignore_errors=True)
