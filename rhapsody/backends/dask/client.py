"""Client of a backend at its Dask scheduler: submits tasks, fetches results, cancels tasks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import time
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from dask.base import tokenize
from distributed import Client, Future

from rhapsody.backends.core.execution import Location
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.work import Work
from rhapsody.backends.dask.batches import BatchQueue
from rhapsody.backends.dask.call_marks import collect_marks
from rhapsody.backends.dask.placement import Placement
from rhapsody.backends.dask.remote_call import (
    DataOutOfReachError,
    RemoteCall,
    dump,
    pickler_for,
)
from rhapsody.backends.dask.shared_data import SharedData
from rhapsody.backends.dask.snapshot import Snapshot
from rhapsody.backends.dask.worker_plugin import (
    INTERRUPT_SECONDS,
    KEPT,
    PICKLED,
    RemoteCallPlugin,
    interrupt_calls,
    run_call,
)
from rhapsody.backends.data.packing import Packed
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.workers.pickling import not_rebuilt
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError

__all__ = ["LOST", "DaskClient"]

logger = logging.getLogger(__name__)

GRAPH_TASKS = 500
"""Maximum number of tasks in one graph; the scheduler's loop is blocked while it reads a graph."""

GRAPH_BYTES = 4 * 1024 * 1024
"""Maximum size of the pickled tasks in one graph; a larger task is sent alone."""

FETCHED_RESULTS = 500
"""Maximum number of results in one fetch."""

PARALLEL_FETCHES = 2
"""Number of fetches at once, so that a large result does not delay the small ones."""

FETCH_LINGER_SECONDS = 0.05
"""Pause between fetches. Each fetch has a fixed cost, which exceeds that of a few small results."""

CANCELLED_TASKS = 10_000
"""Maximum number of tasks in one cancellation."""

RELEASE_SECONDS = 1.0
"""How long to wait until the scheduler has released a cancelled key."""

DEATH_REPORT_SECONDS = 15.0
"""How long to wait for the marks of a dead worker, which its successor may have to report."""

COLLECT_SECONDS = 0.5
"""Time between two searches for these marks."""

DEAD_WORKERS = 1000
"""Number of dead workers that are remembered."""

IN_PROCESS = "inproc:"
"""Begins the addresses of clusters whose workers are threads of the program."""

LOST: Any = object()
"""Returned by `fetch` if the result was lost with its worker: Dask runs the task again."""


class DaskClient:
    """Submits the tasks of one backend to one scheduler, on the service loop.

    Args:
        client: An asynchronous client of `distributed`.
        name: The backend's name.
        reports: Takes the reports that tasks are running.
        marks_directory: Directory for the marks of running calls, if all workers are on this host.
        memory_limit: Maximum number of bytes of large data in shared memory; 0: it travels through
            Dask; None: half of the shared memory.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        reports: TaskReports,
        marks_directory: Path | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self._client = client
        self._reports = reports
        self._token = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._plugin = f"rhapsody-{name}-{self._token}"
        self._works: defaultdict[str, list[Work]] = defaultdict(list)
        self._workers: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._results: dict[str, tuple[bytes, str]] = {}
        self._kept: set[str] = set()
        self._memory_limit = memory_limit
        self._data: SharedData | None = None
        self._marks_directory = marks_directory
        self._deaths: dict[str, int] = {}
        self._dead_workers: OrderedDict[str, None] = OrderedDict()
        self._death_noted = asyncio.Event()
        self._submissions: BatchQueue[Work, Any] = BatchQueue(self._submit_batch, GRAPH_TASKS)
        self._fetches: BatchQueue[Any, Any] = BatchQueue(
            self._fetch_batch, FETCHED_RESULTS, PARALLEL_FETCHES, FETCH_LINGER_SECONDS
        )
        self._cancellations: BatchQueue[Any, dict[str, Any]] = BatchQueue(
            self._cancel_batch, CANCELLED_TASKS
        )
        self._withdrawals: set[asyncio.Future[None]] = set()
        self._collections: BatchQueue[None, None] = BatchQueue(self._collect_marks, CANCELLED_TASKS)

    async def open(self) -> None:
        """Install the plugin on the workers and subscribe to the events that report starts."""
        folders = None
        if self._memory_limit != 0 and not self._client.scheduler.address.startswith(IN_PROCESS):
            self._data = data = await asyncio.to_thread(
                SharedData,
                asyncio.get_running_loop(),
                self._client,
                self._plugin,
                self._memory_limit,
            )
            folders = data.folders
            self._client.subscribe_topic("all", data.on_cluster_event)
        plugin = RemoteCallPlugin(self._plugin, self._marks_directory, folders)
        self._client.subscribe_topic(self._plugin, self._on_event)
        await self._client.register_plugin(plugin, name=self._plugin)
        if self._data is not None:
            await self._data.find_workers()

    async def fail(self, error: Exception) -> None:
        """Raise an error to all callers that wait for the scheduler, now and later."""
        for queue in (self._submissions, self._fetches, self._cancellations, self._collections):
            await queue.close(error)

    async def close(self) -> None:
        """Remove the plugin from the cluster. No task may be active."""
        await asyncio.gather(*self._withdrawals, return_exceptions=True)
        try:
            await self._remove_plugin()
        finally:
            data, self._data = self._data, None
            if data is not None:
                await data.close()

    async def _remove_plugin(self) -> None:
        if self._client.status != "running":
            return
        try:
            if self._data is not None:
                self._client.unsubscribe_topic("all")
            self._client.unsubscribe_topic(self._plugin)
            removal = self._client.unregister_worker_plugin(self._plugin)
            await asyncio.wait_for(removal, INTERRUPT_SECONDS)
        except Exception as error:  # the scheduler has just gone
            logger.debug("the plugin could not be removed from the Dask cluster: %r", error)

    # -- submission -----------------------------------------------------------------------------

    def submit(self, work: Work) -> asyncio.Future[Any]:
        """Submit a task to Dask; returns a future of its `distributed.Future`."""
        return self._submissions.put(work)

    async def _submit_batch(self, works: list[Work]) -> list[Any]:
        packed = await asyncio.to_thread(self._pack_all, works)
        outcomes: list[Any] = [asyncio.CancelledError()] * len(works)
        graphs: defaultdict[Placement, list[int]] = defaultdict(list)
        for position, (work, item) in enumerate(zip(works, packed, strict=True)):
            if isinstance(item, Exception):
                outcomes[position] = item
            elif work.interrupted:  # it was cancelled in the meantime
                self._release(item[0].token)
            else:
                call, futures = item
                placement = Placement.of(work)
                if futures or _has_own_key(work):
                    future = self._submit_one(call, futures, placement)
                    outcomes[position] = self._register(work, call, future)
                else:
                    graphs[placement].append(position)
        for placement, positions in sorted(graphs.items(), key=lambda item: -item[0].priority):
            for graph in _split(positions, [_size(packed[p][0]) for p in positions]):
                futures = self._submit_graph([packed[p][0] for p in graph], placement)
                for position, future in zip(graph, futures, strict=True):
                    outcomes[position] = self._register(
                        works[position], packed[position][0], future
                    )
                await asyncio.sleep(0)
        for work, future in zip(works, outcomes, strict=True):
            if isinstance(future, Future) and work.interrupted:  # nobody waits for it any more
                withdrawal = asyncio.ensure_future(self.cancel(work, future))
                self._withdrawals.add(withdrawal)
                withdrawal.add_done_callback(self._withdrawals.discard)
        return outcomes

    def _register(self, work: Work, call: RemoteCall, future: Any) -> Any:
        """Remember a submitted task; return its future, or the error that was given instead."""
        if isinstance(future, Future):
            self._works[future.key].append(work)
            # If several tasks share a key, the call of the first one runs.
            token = self._tokens.setdefault(future.key, call.token)
            self._deaths.setdefault(token, 0)
        else:
            self._release(call.token)
        return future

    def _release(self, token: str, reusable: bool = True) -> None:
        if self._data is not None:
            self._data.release(token, reusable)

    def _submit_graph(self, calls: list[RemoteCall], placement: Placement) -> Sequence[Any]:
        try:
            futures: Sequence[Any] = self._client.map(
                run_call,
                calls,
                key=[call.key for call in calls],
                pure=False,
                **placement.as_arguments(),
            )
        except Exception as error:
            futures = [error] * len(calls)
        return futures

    def _submit_one(self, call: RemoteCall, futures: list[Any], placement: Placement) -> Any:
        try:
            return self._client.submit(
                run_call, call, futures, key=call.key, pure=False, **placement.as_arguments()
            )
        except Exception as error:
            return error

    def _pack_all(self, works: list[Work]) -> list[Any]:
        functions: dict[int, bytes] = {}
        return [self._pack(work, functions) for work in works]

    def _pack(self, work: Work, functions: dict[int, bytes]) -> Any:
        token = self._new_token()
        try:
            return self._remote_call(work, token, functions)
        except Exception as error:
            if self._data is not None:
                self._data.discard(token)
            if isinstance(error, UnsupportedTaskError):
                return error
            exception = TaskExecutionError(
                work.uid, f"its function or arguments cannot be pickled for a worker: {error}"
            )
            exception.__cause__ = error
            return exception

    def _remote_call(
        self, work: Work, token: str, functions: dict[int, bytes]
    ) -> tuple[RemoteCall, list[Any]]:
        task = work.task
        if work.kind == EXECUTABLE:
            executable = Executable.from_task(task, work.work_dir)
            key = self._key(work, executable)
            return RemoteCall(work.uid, key, token, self._plugin, executable), []
        futures: list[Any] = []
        make_pickler = pickler_for(Future, futures)
        values = (task.get("args") or (), task.get("kwargs") or {})
        own_key = _has_own_key(work)  # which others may use
        all_share = self._data is not None and self._data.takes_arguments
        # A result may stay on its worker only if others that compute it again leave it there, too.
        may_keep = work.may_keep and not own_key and not all_share
        arguments: bytes | Packed
        if all_share and not own_key and self._data is not None:
            arguments = self._data.pack(token, values, make_pickler)
        else:
            arguments = dump(values, make_pickler)
        function = task["function"]
        code = functions.get(id(function))
        if code is None:
            found = len(futures)
            code = dump(function, make_pickler)
            if found == len(futures) and isinstance(function, FunctionType):
                functions[id(function)] = code
        key = self._key(work, code, arguments, [future.key for future in futures])
        call = RemoteCall(
            work.uid,
            key,
            token,
            self._plugin,
            function=code,
            arguments=arguments,
            keep=bool(work.options.get("keep_on_cluster")),
            share=self._data is not None and not own_key and not may_keep,
            may_keep=may_keep,
        )
        return call, [self._bound(work, future) for future in futures]

    def _new_token(self) -> str:
        return f"{next(self._numbers)}-{self._token}"

    def _key(self, work: Work, *identity: Any) -> str:
        options = work.options
        if options.get("key"):
            return str(options["key"])
        # Dask groups tasks by the part of the key before its first word that is not alphabetic.
        label = _label(work)
        if options.get("pure"):
            return f"{label}-{tokenize(*identity)}"
        uid = work.uid.encode(errors="backslashreplace").decode()  # may have lone surrogates
        return f"{label}-{self._new_token()}-{uid}"

    def _bound(self, work: Work, future: Any) -> Any:
        """Return a future of the same key that belongs to this client."""
        if future.client is self._client:
            return future
        other = future.client
        if (
            other is None
            or other.status != "running"
            or other.scheduler.address != self._client.scheduler.address
        ):
            raise UnsupportedTaskError(
                work.uid,
                f"its argument {future!r} is not on this backend's cluster; a result kept on a "
                "cluster ends with the shutdown of the backend that kept it",
            )
        return Future(future.key, self._client)

    def _on_event(self, event: tuple[float, Mapping[str, Any]]) -> None:
        message = event[1]
        self._note_deaths(message.get("died", {}))
        location = Location(message.get("host"), message.get("pid"), message.get("worker"))
        for key in message.get("started", ()):
            for work in self._works.get(key, ()):
                work.location = location
                self._workers[key] = message["worker"]
                self._reports.report_running(work)
        ended = message.get("ended", ())
        if self._data is not None:
            # A call is not known if it was cancelled, or if Dask ran it twice.
            results = [(self._tokens.get(key, ""), names) for key, *_, names in ended if names]
            self._data.on_event(message, results)
        for key, result, form, seconds, _ in ended:
            if key in self._works:
                if form == KEPT:
                    self._kept.add(key)
                if result is not None:
                    self._results[key] = result, form
                for work in self._works[key]:
                    work.location = location
                    if work.started is None:  # too short for a report of its start
                        work.started = max(work.submitted, time.monotonic() - seconds)

    # -- results --------------------------------------------------------------------------------

    def is_kept(self, future: Any) -> bool:
        """Return whether the result of a finished task stays on its worker."""
        return future.key in self._kept

    async def fetch(self, uid: str, future: Any) -> Any:
        """Return the result of a finished task, or `LOST`.

        Args:
            uid: The task's uid, for errors.
            future: Its future.

        Raises:
            TaskExecutionError: The result cannot be rebuilt in this process.
            Exception: It cannot be fetched.
        """
        reported = self._results.get(future.key)
        if reported is None:
            value, form = await self._fetches.put(future), ""
        else:
            data, form = reported
            value = data if form == PICKLED else pickle.loads(data)
        if isinstance(value, Snapshot):
            # A worker in this process hands over its own snapshot, which other tasks may use.
            is_shared = self._client.scheduler.address.startswith("inproc://")
            load = Snapshot.copy if is_shared else Snapshot.load
            return await asyncio.to_thread(_rebuilt, uid, load, value)
        if form == PICKLED:
            return await asyncio.to_thread(_rebuilt, uid, pickle.loads, value)
        if isinstance(value, Packed):
            assert self._data is not None  # until all tasks have ended
            self._data.hold_to_load(value)
            # Not cancelled: the segments are held until the value has been loaded.
            return await asyncio.shield(asyncio.to_thread(_rebuilt, uid, self._data.load, value))
        return value

    def on_out_of_reach(self, error: DataOutOfReachError) -> None:
        """Note that a worker cannot use shared memory; later calls do without."""
        if self._data is not None:
            self._data.on_out_of_reach(error.worker)

    async def _fetch_batch(self, futures: list[Any]) -> list[Any]:
        try:
            values = await self._client.gather(dict(enumerate(futures)), errors="skip")
        except Exception as error:
            if len(futures) == 1:
                return [error]
            # One bad result, such as one that cannot be pickled, fails the whole fetch.
            return [(await self._fetch_batch([future]))[0] for future in futures]
        return [
            values[position] if future.status == "finished" else LOST
            for position, future in enumerate(futures)
        ]

    # -- dead workers ---------------------------------------------------------------------------

    async def deaths(self, future: Any, worker: str) -> int | None:
        """Return how many workers died while they ran a task; None if that is unknown.

        Args:
            future: The future of the task.
            worker: Address of the worker that died last.
        """
        if self._can_be_reused(future.key):
            return None  # another task or client may have had the key when a worker died
        deadline = time.monotonic() + DEATH_REPORT_SECONDS
        while worker not in self._dead_workers and time.monotonic() < deadline:
            await self._collections.put(None)
            if worker not in self._dead_workers:
                self._death_noted.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._death_noted.wait(), COLLECT_SECONDS)
        if worker not in self._dead_workers:
            return None
        return self._deaths.get(self._tokens.get(future.key, ""))

    async def _collect_marks(self, requests: list[None]) -> list[None]:
        if self._marks_directory is not None:
            self._note_deaths(await asyncio.to_thread(collect_marks, self._marks_directory))
        return requests

    def _note_deaths(self, died: Mapping[str, Sequence[str]]) -> None:
        for worker, tokens in died.items():
            self._dead_workers[worker] = None
            for token in tokens:
                if token in self._deaths:
                    self._deaths[token] += 1
        while len(self._dead_workers) > DEAD_WORKERS:
            self._dead_workers.popitem(last=False)
        self._death_noted.set()

    # -- cancellation ---------------------------------------------------------------------------

    def forget(self, work: Work, future: Any, cancelled: bool = False) -> None:
        """Drop a task that has ended."""
        works = self._works.get(future.key, [])
        if work in works:
            works.remove(work)
        if not works:
            self._works.pop(future.key, None)
            self._workers.pop(future.key, None)
            self._results.pop(future.key, None)
            self._kept.discard(future.key)
            token = self._tokens.pop(future.key, "")
            self._deaths.pop(token, None)
            self._release(token, reusable=not cancelled)

    async def cancel(self, work: Work, future: Any) -> None:
        """Cancel a task and interrupt its call, unless another task of the same key needs it."""
        if self._works.get(future.key) == [work]:
            with contextlib.suppress(Exception):  # the scheduler has gone
                work.keep_output(await self._cancellations.put(future))
        self.forget(work, future, cancelled=True)

    async def _cancel_batch(self, futures: list[Any]) -> list[dict[str, Any]]:
        try:
            return await asyncio.wait_for(
                self._cancel_and_interrupt(futures), INTERRUPT_SECONDS + 1
            )
        except Exception as error:  # the scheduler or a worker has gone, and the calls with it
            logger.debug("%d calls on Dask could not be interrupted: %r", len(futures), error)
        return [{}] * len(futures)

    async def _cancel_and_interrupt(self, futures: list[Any]) -> list[dict[str, Any]]:
        """Cancel and interrupt tasks; return the output so far of executables."""
        keys = [future.key for future in futures]
        await self._client.cancel(futures, force=True)
        # The scheduler confirms by cancelling every future that has the key at that time, so a
        # key can be used again only after that. A new future of the key shows the confirmation.
        probes = [Future(key, self._client) for key in keys if self._can_be_reused(key)]
        workers = {self._workers.get(key) for key in keys}
        tokens = [self._tokens.get(key) for key in keys]
        interrupted = await self._client.run(
            interrupt_calls,
            self._plugin,
            [token for token in tokens if token is not None],
            workers=None if None in workers else list(workers),
            on_error="ignore",
        )
        with contextlib.suppress(asyncio.TimeoutError):  # an unknown key is not confirmed
            await asyncio.wait_for(_all_cancelled(probes), RELEASE_SECONDS)
        outputs = {
            token: output for found in interrupted.values() for token, output in found.items()
        }
        return [outputs.get(token, {}) for token in tokens]

    def _can_be_reused(self, key: str) -> bool:
        return any(_has_own_key(work) for work in self._works.get(key, ()))


async def _all_cancelled(futures: list[Any]) -> None:
    # Their events cannot be used: the result of a call that has just ended sets them as well.
    while any(future.status != "cancelled" for future in futures):  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def _rebuilt(uid: str, load: Callable[[Any], Any], data: Any) -> Any:
    try:
        return load(data)
    except BaseException as failure:  # unpickling runs user code, which may even exit
        raise not_rebuilt(uid, failure) from failure


def _has_own_key(work: Work) -> bool:
    return bool(work.options.get("key") or work.options.get("pure"))


def _label(work: Work) -> str:
    """Return a name for the dashboard, made from the task's name: one word to Dask."""
    task = work.task
    function = task.get("function")
    name = task.get("name") or (
        getattr(function, "__name__", None)
        if function
        else os.path.basename(os.fspath(task["executable"]))
    )
    word = "".join(letter if letter.isalnum() else "_" for letter in str(name or work.kind))
    return word if word[:1].isalpha() else f"task_{word}"


def _size(call: RemoteCall) -> int:
    arguments = call.arguments
    size = len(arguments) if isinstance(arguments, bytes) else arguments.inline_bytes
    return len(call.function) + size


def _split(positions: list[int], sizes: Iterable[int]) -> list[list[int]]:
    """Split positions into graphs of at most `GRAPH_BYTES`."""
    graphs: list[list[int]] = [[]]
    total = 0
    for position, size in zip(positions, sizes, strict=True):
        total += size
        if graphs[-1] and total > GRAPH_BYTES:
            graphs.append([])
            total = size
        graphs[-1].append(position)
    return graphs
