"""Worker plugin that runs calls on Dask's workers, reports their starts and interrupts them.

Dask does not interrupt a task that is running: it forgets a cancelled one, whose function runs on.
So every backend has a plugin on every worker. The plugin knows the calls that run there, reports
when they start, and interrupts them on request: an executable by its process group, an async
function at its next await.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle
from dask.sizeof import sizeof
from distributed import Reschedule, WorkerPlugin, get_worker
from distributed.threadpoolexecutor import ThreadPoolExecutor, thread_state, threads_lock
from distributed.worker_state_machine import SecedeEvent

from rhapsody.backends.dask.call_marks import CallMarks, collect_marks, private_directory
from rhapsody.backends.dask.failures import FailedExecutable, dump_failure
from rhapsody.backends.dask.remote_call import DataOutOfReachError, RemoteCall
from rhapsody.backends.dask.snapshot import Snapshot
from rhapsody.backends.dask.worker_data import WorkerData, number_of
from rhapsody.backends.data.packing import PLAIN_TYPES, THRESHOLD, Packed, is_plain
from rhapsody.backends.data.segments import Folders
from rhapsody.backends.executables.blocking_child import Interruption
from rhapsody.backends.executables.descriptors import executables_within_limit
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.backends.workers.limits import ResourceLimits
from rhapsody.backends.workers.pickling import dump_value
from rhapsody.errors import TaskExecutionError
from rhapsody.processes import SECRET_VARIABLES, end_if_forked

__all__ = [
    "INTERRUPT_SECONDS",
    "KEPT",
    "PICKLED",
    "RemoteCallPlugin",
    "follow_orders",
    "interrupt_calls",
    "number_for_data",
    "run_call",
]

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.05
"""Time for which starts are collected before they are reported together."""

INTERRUPT_SECONDS = 5.0
"""How long to wait for the end of an interrupted call."""

MAX_INTERRUPTED = 10_000
"""Number of interrupted calls that are remembered, in case they start later."""

RESCHEDULE_SECONDS = 0.05
"""Pause before a call is sent back to the scheduler, which may send it here again."""

RESULT_SECONDS = 0.2
"""How long Dask may take to store the result of a call that has ended."""

FETCH_SECONDS = 10.0
"""How long results may stay on a worker that is to be restarted, until they are fetched."""

MAX_CHECKED_BYTES = 1024 * 1024
"""Results up to this size are pickled once before Dask gets them, to see whether they can be."""

REPORTED_BYTES = 8 * 1024
"""A result up to this size is reported with the end of its call, and need not be fetched. The
scheduler keeps the latest 1,000 reports."""

PLAIN, PICKLED, PACKED, KEPT = "plain", "pickled", "packed", "kept"
"""The form of a reported result: a pickle that runs no user code, any other, a pickled `Packed`."""

Ended: TypeAlias = tuple[str, bytes | None, str, float, list[str]]
"""The report of an end: key, result, its form, seconds, and the segments of the result. The result
is None if it has to be fetched."""


class _ActiveCall:
    """One call in a thread of the worker."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.started = time.monotonic()
        self.thread = threading.current_thread()
        self.is_seceded = False
        self.ended: Future[None] = Future()
        self.is_interrupted = False
        self.output: dict[str, Any] = {}
        """Result fields of an interrupted executable."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._interruption: Interruption | None = None

    @property
    def can_be_interrupted(self) -> bool:
        return self._task is not None or self._interruption is not None

    def run_awaitable(self, awaitable: Awaitable[Any]) -> Any:
        # On a loop of its own: a function may block that one, while a worker whose own loop is
        # blocked sends no heartbeats and is removed by the scheduler.
        return asyncio.run(self._await(awaitable))

    async def _await(self, awaitable: Awaitable[Any]) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.is_interrupted and self._task is not None:
            self._task.cancel()
        return await awaitable

    def run_executable(self, executable: Executable, children: GuardedGroups) -> dict[str, Any]:
        with Interruption() as self._interruption:
            if self.is_interrupted:
                self._interruption.set()
            return executable.run_blocking(
                children, interruption=self._interruption, interrupted=self.output.update
            )

    def interrupt(self) -> None:
        self.is_interrupted = True
        if self._interruption is not None:
            self._interruption.set()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._task.cancel)


class RemoteCallPlugin(WorkerPlugin):  # type: ignore[misc]
    """The calls of one backend on one worker.

    Args:
        name: The plugin's name, and the topic of the Dask events by which it reports.
        marks_directory: Directory for the marks of running calls. None: one beside the worker's
            own directory.
        folders: The directories of the store for large data. None: it travels through Dask.
    """

    def __init__(
        self, name: str, marks_directory: Path | None = None, folders: Folders | None = None
    ) -> None:
        self.name = name
        self._marks_directory = marks_directory
        self._folders = folders
        self._head_pid = os.getpid()

    def setup(self, worker: Any) -> None:
        """Prepare the worker; called by Dask."""
        self._worker = worker
        self._lock = threading.Lock()
        self._active: dict[str, _ActiveCall] = {}
        self._interrupted: dict[str, None] = {}
        self._started: list[RemoteCall] = []
        self._report_pending = False
        self._ended: list[Ended] = []
        self.data: WorkerData | None = None
        """The worker's part in the store for large data, if it sees the store."""
        self._ends_report_pending = False
        self.children = GuardedGroups()
        self._marks: CallMarks | None = None
        self._limits: ResourceLimits | None = None
        self.is_restarting = False
        """Whether the worker runs no more calls, because a task lowered its limits."""
        if os.getpid() != self._head_pid:
            for variable in SECRET_VARIABLES:
                os.environ.pop(variable, None)
            if worker.nanny:  # not the process group of a terminal, or of a batch job
                with contextlib.suppress(PermissionError):  # it leads a session already
                    os.setpgid(0, 0)  # a task that signals its group must not reach the program
            executables_within_limit(worker.state.nthreads)  # raises the limit of open files
            self._limits = ResourceLimits()
            self._open_marks()
            self._open_data()

    def _open_marks(self) -> None:
        directory = self._marks_directory or Path(self._worker.local_directory).parent / self.name
        try:
            private_directory(directory)
            self._marks = CallMarks(directory, self._worker.address)
        except OSError as error:  # for example a full disk
            logger.warning("calls on a Dask worker are not marked as running: %s", error)
        if died := collect_marks(directory):
            self._worker.loop.add_callback(self._request_event, {"died": died})

    def _open_data(self) -> None:
        if self._folders is None:
            return
        memory = self._worker.memory_manager.memory_limit
        self.data = WorkerData.open(self._folders, memory, self._report_ends_soon)
        number = {"worker": self._worker.address, "number": number_of(self.data)}
        self._worker.loop.add_callback(self._request_event, number)

    async def _request_event(self, event: dict[str, Any]) -> None:
        # By a request: a worker that is just starting has no stream to the scheduler yet.
        with contextlib.suppress(Exception):  # the scheduler has gone, or this worker ends already
            await self._worker.scheduler.log_event(topic=self.name, msg=event)

    async def teardown(self, worker: Any) -> None:
        """Interrupt all calls, as the worker closes or the plugin is removed; called by Dask."""
        await self.interrupt(list(self._active))
        await asyncio.to_thread(self.children.close)
        marks, self._marks = self._marks, None
        if marks is not None:
            marks.close()
        data, self.data = self.data, None
        if data is not None:
            data.close()

    @contextlib.contextmanager
    def running(self, call: RemoteCall) -> Iterator[_ActiveCall]:
        """Register a call while it runs in this thread."""
        active = _ActiveCall(call.key)
        with self._lock:
            active.is_interrupted = call.token in self._interrupted
            self._active[call.token] = active
            self._started.append(call)
            first = not self._report_pending
            self._report_pending = True
            marks = self._marks
            slot = marks.add(call.token) if marks is not None else 0
        if first:
            self._worker.loop.add_callback(self._report_soon)
        try:
            yield active
        finally:
            with self._lock:
                self._active.pop(call.token, None)
                if marks is not None and marks is self._marks:
                    marks.remove(slot)
                if active.is_seceded:
                    thread_state.proceed = False  # Dask has replaced its thread
            active.ended.set_result(None)
            if self._limits is not None and not self._limits.restore():
                self._on_limits_lowered()

    def _on_limits_lowered(self) -> None:
        # A task has lowered a limit that this process cannot raise again.
        if not self._worker.nanny:
            logger.warning(
                "a task lowered a resource limit of its Dask worker for later tasks; a worker with "
                "a nanny would be restarted"
            )
        elif not self.is_restarting:
            logger.warning("a task lowered a resource limit of its Dask worker, which is restarted")
            self.is_restarting = True
            self._worker.loop.add_callback(self._restart)

    async def _restart(self) -> None:
        # Dask would run calls again whose results were lost with the worker. It reports neither
        # that a result is stored nor that it was fetched.
        while self._active:  # noqa: ASYNC110
            await asyncio.sleep(RESCHEDULE_SECONDS)
        await asyncio.sleep(RESULT_SECONDS)
        deadline = time.monotonic() + FETCH_SECONDS
        while self._has_data_to_fetch() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(RESCHEDULE_SECONDS)
        with contextlib.suppress(Exception):  # it is closing already
            await self._worker.close_gracefully(restart=True)

    def _has_data_to_fetch(self) -> bool:
        # Kept results are not fetched soon. Dask moves them to another worker. The type is looked
        # up without the data, which may be on disk.
        tasks = self._worker.state.tasks
        return any(key in tasks and tasks[key].type is not Snapshot for key in self._worker.data)

    def _report_soon(self) -> None:
        asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report_started)

    def _report_started(self) -> None:
        with self._lock:
            started = [call.key for call in self._started if call.token in self._active]
            self._started.clear()
            self._report_pending = False
        if started:
            self._log_event(started=started)

    def _log_event(self, **event: Any) -> None:
        message = {
            "worker": self._worker.address,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **event,
        }
        self._worker.log_event(self.name, message)

    def report_end(self, call: RemoteCall, result: bytes, form: str, seconds: float) -> None:
        """Report the result of a call, before Dask learns of its end; a large one is fetched.

        Args:
            call: The call.
            result: Its result, pickled.
            form: `PLAIN` or `PICKLED`.
            seconds: How long the call took.
        """
        if len(result) <= REPORTED_BYTES:
            self._report_end_soon((call.key, result, form, seconds, []))

    def report_packed(self, call: RemoteCall, packed: Packed, seconds: float) -> None:
        """Report a result with data in segments, which the program holds from then on."""
        data = pickle.dumps(packed, protocol=5)
        sent = data if len(data) <= REPORTED_BYTES else None
        self._report_end_soon((call.key, sent, PACKED, seconds, sorted(packed.segments)))

    def report_kept(self, call: RemoteCall, seconds: float) -> None:
        """Report the end of a call whose result stays on the worker."""
        self._report_end_soon((call.key, None, KEPT, seconds, []))

    def _report_end_soon(self, ended: Ended) -> None:
        with self._lock:
            self._ended.append(ended)
        self._report_ends_soon()

    def _report_ends_soon(self) -> None:
        # May be called during garbage collection, so it takes no lock.
        if not self._ends_report_pending:
            self._ends_report_pending = True
            with contextlib.suppress(RuntimeError):  # the worker ends, and its loop is closed
                self._worker.loop.asyncio_loop.call_soon_threadsafe(self._report_ends)

    def _report_ends(self) -> None:
        """Report calls that have ended, and which segments are used and used no longer."""
        self._ends_report_pending = False
        report: dict[str, Any] = {}
        data = self.data
        if data is not None:
            # Before the ends: a result may be the last use of a segment that is dropped after it.
            held, dropped = data.take_report()
            if held or dropped:
                report = {"held": held, "dropped": dropped}
        with self._lock:
            ended, self._ended = self._ended, []
        if ended:
            report["ended"] = ended
        if report:
            number = {} if data is None else {"number": data.number}
            self._log_event(**number, **report)

    async def interrupt(self, tokens: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Interrupt calls and wait for their ends. A call that starts later is interrupted too.

        A sync function cannot be interrupted: it runs on, and is not waited for. Another thread of
        the worker takes its place, since the scheduler sends new tasks to the worker.

        Returns:
            The result fields of the interrupted executables, by token.
        """
        with self._lock:
            calls = {token: self._active[token] for token in tokens if token in self._active}
            self._interrupted.update(dict.fromkeys(tokens))
            while len(self._interrupted) > MAX_INTERRUPTED:
                del self._interrupted[next(iter(self._interrupted))]
        for call in calls.values():
            call.interrupt()
        running = []
        for call in calls.values():
            if call.can_be_interrupted:
                running.append(call)
            else:
                self._replace_thread(call)
        if running:
            ends = [asyncio.wrap_future(call.ended) for call in running]
            await asyncio.wait(ends, timeout=INTERRUPT_SECONDS)
        return {token: call.output for token, call in calls.items() if call.output}

    def _replace_thread(self, call: _ActiveCall) -> None:
        """Do for a call in another thread what `distributed.secede` does for the caller."""
        executor = self._worker.executors["default"]
        if not isinstance(executor, ThreadPoolExecutor):  # of a worker with an executor of its own
            return
        with self._lock:
            if call.is_seceded or call not in self._active.values():
                return
            call.is_seceded = True
            with threads_lock:
                executor._threads.discard(call.thread)
                executor._adjust_thread_count()
        self._worker.handle_stimulus(
            SecedeEvent(
                key=call.key,
                compute_duration=time.monotonic() - call.started,
                stimulus_id=f"rhapsody-interrupt-{time.time()}",
            )
        )


async def interrupt_calls(
    name: str, tokens: Sequence[str], dask_worker: Any
) -> dict[str, dict[str, Any]]:
    """Interrupt calls on a worker; passed to `Client.run`.

    Args:
        name: The plugin's name.
        tokens: Tokens of the calls.
        dask_worker: Set by Dask.

    Returns:
        The result fields of the interrupted executables, by token.
    """
    plugin: RemoteCallPlugin | None = dask_worker.plugins.get(name)
    return {} if plugin is None else await plugin.interrupt(tokens)


def number_for_data(name: str, dask_worker: Any) -> int:
    """Return the number of a worker among the users of large data; passed to `Client.run`.

    Args:
        name: The plugin's name.
        dask_worker: Set by Dask.

    Returns:
        0 if the worker does not see the store.
    """
    plugin: RemoteCallPlugin | None = dask_worker.plugins.get(name)
    return number_of(None if plugin is None else plugin.data)


async def follow_orders(
    name: str, number: int, orders: Sequence[tuple[Any, ...]], dask_worker: Any
) -> None:
    """Follow orders about large data; passed to `Client.run`.

    Args:
        name: The plugin's name.
        number: The number of the worker that the orders are for.
        orders: The orders.
        dask_worker: Set by Dask.
    """
    plugin: RemoteCallPlugin | None = dask_worker.plugins.get(name)
    data = None if plugin is None else plugin.data
    if data is not None and data.number == number:
        # In a thread: removing a large segment takes milliseconds.
        await asyncio.to_thread(data.follow, orders)


def run_call(call: RemoteCall, data: Sequence[Any] = ()) -> Any:
    """Run one call to its end, in a thread of a worker.

    Args:
        call: The call.
        data: Results of earlier tasks, which replace the futures among the arguments.

    Returns:
        What the function returned, or the result fields of the executable.

    Raises:
        FailedExecutable: The executable's exit code is not 0.
        Reschedule: The worker runs no more calls.
        Exception: What the function raised, or a `TaskExecutionError` that names it if it cannot
            be set on a future.
        FailedFunction: Dask cannot send what the function raised.
    """
    plugin: RemoteCallPlugin = get_worker().plugins[call.plugin]
    if plugin.is_restarting:
        time.sleep(RESCHEDULE_SECONDS)
        raise Reschedule
    with plugin.running(call) as active:
        pid = os.getpid()
        try:
            began = time.perf_counter()
            result = _result(call, data, active, plugin)
            end_if_forked(pid)
            if active.is_interrupted:
                return result
            return _report(call, result, plugin, time.perf_counter() - began)
        except BaseException as error:
            end_if_forked(pid, error)
            if active.is_interrupted:
                # The result is dropped. An exception would make Dask retry the task if it arrived
                # before the cancellation.
                return None
            if isinstance(error, (FailedExecutable, DataOutOfReachError)):
                raise
            failure = dump_failure(call.uid, error)
        # Not in the handler: the original exception would be its context, which Dask pickles, too.
        raise pickle.loads(failure)


def _result(
    call: RemoteCall, data: Sequence[Any], active: _ActiveCall, plugin: RemoteCallPlugin
) -> Any:
    if active.is_interrupted:
        return None
    if call.executable is not None:
        fields = active.run_executable(call.executable, plugin.children)
        if "exception" in fields:
            raise FailedExecutable(fields)
        return fields
    function, args, kwargs = call.load(data, None if plugin.data is None else plugin.data.load)
    result = function(*args, **kwargs)
    if inspect.isawaitable(result):
        result = active.run_awaitable(result)
    return result


def _report(call: RemoteCall, result: Any, plugin: RemoteCallPlugin, seconds: float) -> Any:
    """Report the end of a call, and refuse a result that cannot be pickled.

    Returns:
        What Dask keeps: the result, or a large one as a `Packed`, whose data is in a segment.
    """
    if call.keep:
        return result
    if plugin.data is not None and call.share and not is_plain(result):
        packed = dump_value(call.uid, result, plugin.data.pack)
        if isinstance(packed, Packed):
            plugin.report_packed(call, packed, seconds)
            return packed
        plugin.report_end(call, packed, PICKLED, seconds)
    elif call.may_keep and not is_plain(result):
        snapshot = _snapshot(call.uid, result)
        if snapshot.nbytes >= THRESHOLD:
            plugin.report_kept(call, seconds)
            return snapshot
        pickled = cloudpickle.dumps(result) if snapshot.buffers else snapshot.stream
        plugin.report_end(call, pickled, PICKLED, seconds)
    # One result that cannot be pickled fails the transfer of all results that are fetched with
    # it. Large ones are not checked, since that would pickle them twice.
    elif sizeof(result) <= MAX_CHECKED_BYTES:
        plain = call.executable is not None or type(result) in PLAIN_TYPES
        pickled = dump_value(call.uid, result, pickle.dumps if plain else cloudpickle.dumps)
        assert isinstance(pickled, bytes)
        plugin.report_end(call, pickled, PLAIN if plain else PICKLED, seconds)
    return result


def _snapshot(uid: str, result: Any) -> Snapshot:
    try:
        return Snapshot.of(result)
    except Exception as error:
        raise TaskExecutionError(
            uid, f"its result, a {type(result).__name__}, cannot be pickled: {error}"
        ) from error
