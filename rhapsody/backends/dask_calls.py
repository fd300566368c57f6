"""What runs on Dask's workers: calls that say when they start and can be ended while they run.

Dask does not interrupt a task that runs: a cancelled one is forgotten, its function goes on. So
every backend has a plugin on every worker. It knows the calls that run there, reports their starts
and ends them when asked: the process group of an executable, an async function at its next await.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import pickle
import threading
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import cloudpickle
from dask.sizeof import sizeof
from distributed import WorkerPlugin, get_worker

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends.dask_children import Child
from rhapsody.backends.executables import Executable
from rhapsody.backends.guard import GuardedGroups
from rhapsody.backends.work import task_exception
from rhapsody.processes import SECRET_VARIABLES

__all__ = ["Call", "Calls", "FailedExecutable", "dump", "end_calls", "run_call"]

MARK_SECONDS = 0.05
"""How long starts are gathered before they are reported together."""

END_SECONDS = 5.0
"""How long a call that was told to end may take before nobody waits for it any more."""

ENDED_BEFORE_START = 10_000
"""Tokens kept of calls that were ended here, in case they start all the same."""


CHECKED = 1024 * 1024
"""Bytes up to which a result is pickled once before it is handed to Dask, to see if it can be."""


class FailedExecutable(Exception):
    """An executable ended with an exit code other than 0; brings all its result fields.

    Raised rather than returned, so that Dask counts the task as failed and honours `retries`.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.fields = fields

    def __str__(self) -> str:
        return str(self.fields["exception"])


@dataclass(frozen=True)
class Call:
    """One task on its way to a worker.

    Attributes:
        uid: The task's uid.
        key: Its key in Dask.
        token: Names this call alone; a key can be used again.
        plugin: Name of the backend's plugin on the workers.
        executable: What to run, where it is an executable.
        function: The pickled function, where it is one.
        arguments: The pickled `(args, kwargs)`.
        keep: Whether the result stays on the worker.
    """

    uid: str
    key: str
    token: str
    plugin: str
    executable: Executable | None = None
    function: bytes = b""
    arguments: bytes = b""
    keep: bool = False

    def load(self, data: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Return function, args and kwargs, with data of the cluster in the places of futures.

        Raises:
            TaskExecutionError: Something in them cannot be imported or rebuilt here.
        """
        _loading.data = data
        try:
            args, kwargs = pickle.loads(self.arguments)
            return pickle.loads(self.function), args, kwargs
        except Exception as error:
            raise TaskExecutionError(
                self.uid,
                f"a worker could not load its function or arguments: {type(error).__name__}: "
                f"{error}; what the main script does not define must be importable on workers",
            ) from error
        finally:
            del _loading.data


_loading = threading.local()


def _data_of(position: int) -> Any:
    return _loading.data[position]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes futures out, wherever they are, and leaves their position among them."""

    def __init__(self, file: Any, kind: type, futures: list[Any]) -> None:
        super().__init__(file)
        self._kind = kind
        self._futures = futures

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, self._kind):
            self._futures.append(obj)
            return _data_of, (len(self._futures) - 1,)
        return super().reducer_override(obj)


def dump(obj: Any, kind: type, futures: list[Any]) -> bytes:
    """Pickle an object, closures and lambdas included.

    Args:
        obj: Anything.
        kind: The class of futures.
        futures: Futures found in the object are added here; `Call.load` puts their data back.
    """
    with io.BytesIO() as file:
        _Pickler(file, kind, futures).dump(obj)
        return file.getvalue()


class _Running:
    """One call in a thread of the worker."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._child: Child | None = None

    @property
    def can_be_ended(self) -> bool:
        return self._task is not None or self._child is not None

    def run(self, awaitable: Awaitable[Any]) -> Any:
        # On a loop of its own: it can block that for as long as it likes, while a worker whose
        # loop is blocked is taken for dead.
        return asyncio.run(self._await(awaitable))

    async def _await(self, awaitable: Awaitable[Any]) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.ending and self._task is not None:
            self._task.cancel()
        return await awaitable

    def run_child(self, executable: Executable, children: GuardedGroups) -> dict[str, Any]:
        self._child = Child(executable, children)
        if self.ending:
            self._child.end()
        return self._child.run()

    def end(self) -> None:
        self.ending = True
        if self._child is not None:
            self._child.end()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just ended with it
                self._loop.call_soon_threadsafe(self._task.cancel)


class Calls(WorkerPlugin):  # type: ignore[misc]
    """The calls of one backend on one worker.

    Args:
        name: The plugin's name, and the topic of Dask's events by which starts are reported.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._head_pid = os.getpid()

    def setup(self, worker: Any) -> None:
        """Begin; called by the worker."""
        self._worker = worker
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, None] = {}
        self._started: list[Call] = []
        self._marking = False
        self.children = GuardedGroups()
        if os.getpid() != self._head_pid:
            for variable in SECRET_VARIABLES:
                os.environ.pop(variable, None)

    async def teardown(self, worker: Any) -> None:
        """End what runs, since the worker closes or the backend goes; called by the worker."""
        await self.end(list(self._running))
        await asyncio.to_thread(self.children.close)

    @contextlib.contextmanager
    def running(self, call: Call) -> Iterator[_Running]:
        """Count a call as running, in its thread."""
        running = _Running()
        with self._lock:
            running.ending = call.token in self._ended
            self._running[call.token] = running
            self._started.append(call)
            first = not self._marking
            self._marking = True
        if first:
            self._worker.loop.add_callback(self._mark_soon)
        try:
            yield running
        finally:
            with self._lock:
                self._running.pop(call.token, None)
            running.ended.set_result(None)

    def _mark_soon(self) -> None:
        asyncio.get_running_loop().call_later(MARK_SECONDS, self._mark)

    def _mark(self) -> None:
        with self._lock:
            started = [call.key for call in self._started if call.token in self._running]
            self._started.clear()
            self._marking = False
        if started:
            message = {"worker": self._worker.address, "started": started}
            self._worker.log_event(self.name, message)

    async def end(self, tokens: Sequence[str]) -> None:
        """End calls, those that come later as well; return when they have ended.

        A sync function cannot be ended: it runs on, and nobody waits for it.
        """
        with self._lock:
            calls = [self._running[token] for token in tokens if token in self._running]
            self._ended.update(dict.fromkeys(tokens))
            while len(self._ended) > ENDED_BEFORE_START:
                del self._ended[next(iter(self._ended))]
        for call in calls:
            call.end()
        ends = [asyncio.wrap_future(call.ended) for call in calls if call.can_be_ended]
        if ends:
            await asyncio.wait(ends, timeout=END_SECONDS)


async def end_calls(name: str, tokens: Sequence[str], dask_worker: Any) -> None:
    """End calls on a worker; to be passed to `Client.run`.

    Args:
        name: The plugin's name.
        tokens: Which calls.
        dask_worker: Set by Dask.
    """
    calls = dask_worker.plugins.get(name)
    if calls is not None:
        await calls.end(tokens)


def run_call(call: Call, data: Sequence[Any] = ()) -> Any:
    """Run one call to its end, in a thread of a worker.

    Args:
        call: What to run.
        data: Results of earlier tasks, for the futures among its arguments.

    Returns:
        What a function returned; the result fields of an executable.

    Raises:
        FailedExecutable: The executable's exit code is not 0.
        Exception: What the function raised, or, where that cannot be carried home or held by a
            future, a `TaskExecutionError` that names it.
    """
    calls: Calls = get_worker().plugins[call.plugin]
    with calls.running(call) as running:
        try:
            return _result_of(call, data, running, calls)
        except BaseException as error:
            if running.ending:
                # Nobody waits for it. An exception would have Dask try again if it heard of that
                # before it heard of the cancellation.
                return None
            if isinstance(error, FailedExecutable):
                raise
            raise _portable(call.uid, error) from None


def _result_of(call: Call, data: Sequence[Any], running: _Running, calls: Calls) -> Any:
    if running.ending:
        return None
    if call.executable is not None:
        fields = running.run_child(call.executable, calls.children)
        if "exception" in fields:
            raise FailedExecutable(fields)
        return fields
    function, args, kwargs = call.load(data)
    result = function(*args, **kwargs)
    if inspect.isawaitable(result):
        result = running.run(result)
    if not call.keep:
        _check_portable(call.uid, result)
    return result


def _check_portable(uid: str, result: Any) -> None:
    # A result that cannot travel would spoil the transfer of all that travel with it. Large ones
    # are not pickled twice for that.
    if isinstance(result, (type(None), bool, int, float, str, bytes)) or sizeof(result) > CHECKED:
        return
    try:
        cloudpickle.dumps(result)
    except Exception as error:
        raise TaskExecutionError(
            uid, f"its result, a {type(result).__name__}, cannot be pickled: {error}"
        ) from error


def _portable(uid: str, error: BaseException) -> Exception:
    exception = task_exception(uid, error)
    try:
        pickle.loads(cloudpickle.dumps(exception))
    except Exception:  # many exceptions pickle but cannot be rebuilt
        stand_in = TaskExecutionError(uid, f"it raised {type(error).__name__}: {error}")
        return stand_in.with_traceback(error.__traceback__)
    return exception
