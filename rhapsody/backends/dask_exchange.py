"""What goes between a backend and its Dask cluster, many at a time: tasks, results, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

from dask.base import tokenize
from distributed import Future

from rhapsody.api.errors import TaskExecutionError, UnsupportedTaskError
from rhapsody.backends.batches import Batches
from rhapsody.backends.dask_calls import END_SECONDS, Call, Calls, dump, end_calls, run_call
from rhapsody.backends.dask_placement import Placement
from rhapsody.backends.executables import Executable
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work

__all__ = ["LOST", "Exchange"]

logger = logging.getLogger(__name__)

GRAPH_TASKS = 500
"""Tasks sent in one graph: the scheduler takes a graph in one go, which blocks its loop."""

GRAPH_BYTES = 4 * 1024 * 1024
"""Bytes of pickled tasks sent in one graph; a larger task goes alone."""

RESULTS = 500
"""Results fetched in one go."""

FETCHES = 2
"""Fetches under way at once, so that a large result does not hold up the small ones."""

LINGER_SECONDS = 0.05
"""Pause between fetches: in a stream of small results, each fetch of a few costs more than they."""

ANSWER_SECONDS = 1.0
"""How long the scheduler is waited for to say that it has cancelled a key."""

LOST: Any = object()
"""Instead of a result that was lost before it could be fetched: wait for the task again."""


class Exchange:
    """One backend's traffic with one scheduler, on the service loop.

    Args:
        client: An asynchronous client of Dask.
        name: The backend's name.
        started: Called with a task when a worker says that it runs.
    """

    def __init__(self, client: Any, name: str, started: Callable[[Work], None]) -> None:
        self._client = client
        self._started = started
        self._token = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._plugin = f"rhapsody-{name}-{self._token}"
        self._works: defaultdict[str, list[Work]] = defaultdict(list)
        self._workers: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._sends: Batches[Work, Any] = Batches(self._send, GRAPH_TASKS)
        self._fetches: Batches[Any, Any] = Batches(self._fetch, RESULTS, FETCHES, LINGER_SECONDS)
        self._ends: Batches[Any, None] = Batches(self._end, 10_000)

    async def open(self) -> None:
        """Set up what ends calls on the workers, and listen for starts."""
        await self._client.register_plugin(Calls(self._plugin), name=self._plugin)
        self._client.subscribe_topic(self._plugin, self._on_mark)

    async def give_up(self, error: Exception) -> None:
        """Let all who wait for the cluster have an error."""
        for batches in (self._sends, self._fetches, self._ends):
            await batches.close(error)

    async def close(self) -> None:
        """Leave nothing behind on the cluster; no task may be under way."""
        if self._client.status != "running":
            return
        try:
            self._client.unsubscribe_topic(self._plugin)
            removal = self._client.unregister_worker_plugin(self._plugin)
            await asyncio.wait_for(removal, END_SECONDS)
        except Exception as error:  # it went this moment
            logger.debug("could not clean up at the scheduler: %r", error)

    # -- tasks ----------------------------------------------------------------------------------

    def send(self, work: Work) -> asyncio.Future[Any]:
        """Hand a task over to Dask; the outcome is its `distributed.Future`."""
        return self._sends.put(work)

    async def _send(self, works: list[Work]) -> list[Any]:
        packed = await asyncio.to_thread(self._pack_all, works)
        outcomes: list[Any] = [asyncio.CancelledError()] * len(works)
        graphs: defaultdict[Placement, list[int]] = defaultdict(list)
        for position, (work, item) in enumerate(zip(works, packed, strict=True)):
            if isinstance(item, Exception):
                outcomes[position] = item
            elif not work.ending:  # else it was cancelled meanwhile
                call, futures = item
                placement = Placement.of(work.options)
                if futures or _names_its_key(work):
                    outcomes[position] = self._submit(call, futures, placement)
                else:
                    graphs[placement].append(position)
        for placement, positions in sorted(graphs.items(), key=lambda item: -item[0].priority):
            for graph in _cut(positions, [_size(packed[p][0]) for p in positions]):
                sent = await self._map([packed[p][0] for p in graph], placement)
                for position, future in zip(graph, sent, strict=True):
                    outcomes[position] = future
        for work, item, future in zip(works, packed, outcomes, strict=True):
            if isinstance(future, Future):
                self._works[future.key].append(work)
                # Of several tasks of one key, it is the first one's call that runs.
                self._tokens.setdefault(future.key, item[0].token)
        return outcomes

    async def _map(self, calls: list[Call], placement: Placement) -> Sequence[Any]:
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
        await asyncio.sleep(0)
        return futures

    def _submit(self, call: Call, futures: list[Any], placement: Placement) -> Any:
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
        try:
            return self._call(work, functions)
        except UnsupportedTaskError as error:
            return error
        except Exception as error:
            exception = TaskExecutionError(
                work.uid, f"its function or arguments cannot be pickled for a worker: {error}"
            )
            exception.__cause__ = error
            return exception

    def _call(self, work: Work, functions: dict[int, bytes]) -> tuple[Call, list[Any]]:
        task = work.task
        if work.kind == EXECUTABLE:
            executable = Executable.from_task(task, work.work_dir)
            key = self._key(work, executable)
            return Call(work.uid, key, self._new_token(), self._plugin, executable), []
        futures: list[Any] = []
        arguments = dump((task.get("args") or (), task.get("kwargs") or {}), Future, futures)
        function = task["function"]
        code = functions.get(id(function))
        if code is None:
            found = len(futures)
            code = dump(function, Future, futures)
            if found == len(futures) and isinstance(function, FunctionType):
                functions[id(function)] = code
        key = self._key(work, code, arguments, [future.key for future in futures])
        keep = bool(work.options.get("keep_on_cluster"))
        token = self._new_token()
        call = Call(work.uid, key, token, self._plugin, None, code, arguments, keep)
        return call, [self._bound(work, future) for future in futures]

    def _new_token(self) -> str:
        return f"{next(self._numbers)}-{self._token}"

    def _key(self, work: Work, *identity: Any) -> str:
        options = work.options
        if options.get("key"):
            return str(options["key"])
        # Dask groups tasks by what comes before the first word that is not of letters.
        label = _label(work)
        if options.get("pure"):
            return f"{label}-{tokenize(*identity)}"
        return f"{label}-{self._new_token()}-{work.uid}"

    def _bound(self, work: Work, future: Any) -> Any:
        if future.client is self._client:
            return future
        there = future.client
        if (
            there is None
            or there.status != "running"
            or there.scheduler.address != self._client.scheduler.address
        ):
            raise UnsupportedTaskError(
                work.uid,
                f"its argument {future!r} is not on this backend's cluster; a result kept on a "
                "cluster ends with the shutdown of the backend that kept it",
            )
        return Future(future.key, self._client)

    def _on_mark(self, event: tuple[float, Mapping[str, Any]]) -> None:
        message = event[1]
        for key in message["started"]:
            for work in self._works.get(key, ()):
                self._workers[key] = message["worker"]
                self._started(work)

    # -- results --------------------------------------------------------------------------------

    async def fetch(self, future: Any) -> Any:
        """Return the result of a finished task, or `LOST`."""
        return await self._fetches.put(future)

    async def _fetch(self, futures: list[Any]) -> list[Any]:
        try:
            values = await self._client.gather(dict(enumerate(futures)), errors="skip")
        except Exception as error:
            if len(futures) == 1:
                return [error]
            # One of them spoils it for all, such as one that cannot be pickled.
            return [(await self._fetch([future]))[0] for future in futures]
        return [
            values[position] if future.status == "finished" else LOST
            for position, future in enumerate(futures)
        ]

    # -- ends -----------------------------------------------------------------------------------

    def done(self, work: Work, future: Any) -> None:
        """Let go of a task that has ended."""
        works = self._works.get(future.key, [])
        if work in works:
            works.remove(work)
        if not works:
            self._works.pop(future.key, None)
            self._workers.pop(future.key, None)
            self._tokens.pop(future.key, None)

    async def end(self, work: Work, future: Any) -> None:
        """Cancel a task and end its call, unless another task of the same key still needs it."""
        if self._works.get(future.key) == [work]:
            with contextlib.suppress(Exception):  # the scheduler has gone
                await self._ends.put(future)
        self.done(work, future)

    async def _end(self, futures: list[Any]) -> list[None]:
        try:
            await asyncio.wait_for(self._end_calls(futures), END_SECONDS + 1)
        except Exception as error:  # the scheduler or a worker is gone, and the calls with it
            logger.debug("could not end %d calls: %r", len(futures), error)
        return [None] * len(futures)

    async def _end_calls(self, futures: list[Any]) -> None:
        keys = [future.key for future in futures]
        await self._client.cancel(futures, force=True)
        # The scheduler answers by cancelling whatever has the key then: a key that may be used
        # again is free only after that. A new future of it is what hears the answer.
        probes = [Future(key, self._client) for key in keys if self._is_shared(key)]
        known = {self._workers.get(key) for key in keys}
        await self._client.run(
            end_calls,
            self._plugin,
            [self._tokens[key] for key in keys if key in self._tokens],
            workers=None if None in known else list(known),
            on_error="ignore",
        )
        with contextlib.suppress(asyncio.TimeoutError):  # no answer for a key that it has not had
            await asyncio.wait_for(_cancelled(probes), ANSWER_SECONDS)

    def _is_shared(self, key: str) -> bool:
        return any(_names_its_key(work) for work in self._works.get(key, ()))


async def _cancelled(futures: list[Any]) -> None:
    # Their own events are of no use: the result of a call that has just ended sets them too.
    while any(future.status != "cancelled" for future in futures):  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def _names_its_key(work: Work) -> bool:
    return bool(work.options.get("key") or work.options.get("pure"))


def _label(work: Work) -> str:
    task = work.task
    function = task.get("function")
    name = task.get("name") or (
        getattr(function, "__name__", None)
        if function
        else os.path.basename(os.fspath(task["executable"]))
    )
    # Also what is no word for Dask, such as `step 2` or `/bin/echo`, is to be read there.
    words = "".join(letter if letter.isalnum() else "_" for letter in str(name or work.kind))
    return words if words[:1].isalpha() else f"task_{words}"


def _size(call: Call) -> int:
    return len(call.function) + len(call.arguments)


def _cut(positions: list[int], sizes: Iterable[int]) -> list[list[int]]:
    graphs: list[list[int]] = [[]]
    total = 0
    for position, size in zip(positions, sizes, strict=True):
        total += size
        if graphs[-1] and total > GRAPH_BYTES:
            graphs.append([])
            total = size
        graphs[-1].append(position)
    return graphs
