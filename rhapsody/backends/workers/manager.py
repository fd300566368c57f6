"""The worker manager: exchanges messages with the workers of one backend, and has their scheduler.

Blocking work runs in two threads: one pickles and sends messages, one unpickles them. A subclass
starts and ends the processes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.allocation import Node
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.service_loop import in_thread
from rhapsody.backends.core.work import Work
from rhapsody.backends.data.segments import Folders
from rhapsody.backends.data.store import DataStore
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.workers.connections import Connections
from rhapsody.backends.workers.messages import (
    TAKE_BACK,
    TRIM,
    Call,
    MessageBatch,
    RunMessage,
    WorkerMessage,
    encode_message,
    load_payload,
    loads_quickly,
)
from rhapsody.backends.workers.pickling import Pack, dump_arguments, pickles_quickly
from rhapsody.backends.workers.scheduler import Scheduler
from rhapsody.backends.workers.worker import WorkerSetup, import_path
from rhapsody.backends.workers.worker_state import CONCURRENT, WorkerState
from rhapsody.errors import TaskExecutionError

__all__ = ["Limits", "WorkerManager"]

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4 * 1024 * 1024
"""A message of this size gets no more calls."""

JOIN_SECONDS = 0.5
"""Longest wait for each of the two message threads to end; they may be running user code."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the workers of a backend.

    Attributes:
        workers: Maximum number of workers at a time.
        async_per_worker: Maximum number of async functions that a worker may hold.
        grace: Seconds that a cancelled task may take to end before its worker is killed.
        memory: Maximum number of bytes of large data in shared memory; 0: large data travels in
            messages; None: half of the shared memory.
    """

    workers: int
    async_per_worker: int
    grace: float
    memory: int | None = None


class WorkerManager:
    """Exchanges messages with the workers of one backend; the base class of those that start them.

    Args:
        name: The backend's name.
        nodes: Nodes that workers may run on.
        limits: Limits of the workers.
        mode_of: Returns the mode that a task runs in.
        reports: Takes reports about tasks.
        address: The address in the setup of the workers.

    Attributes:
        scheduler: Distributes tasks over the workers.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        limits: Limits,
        mode_of: Callable[[Work], str],
        reports: TaskReports,
        address: str = "",
    ) -> None:
        self._name = name
        self._address = address
        self._mode_of = mode_of
        self._loop = asyncio.get_running_loop()
        self._connections: Connections | None = None
        self._outgoing: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unread: queue.SimpleQueue[list[MessageBatch] | None] = queue.SimpleQueue()
        self._reads_pending = 0
        self._gc_enabled = gc.isenabled()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count(1)
        self._memory_limit = limits.memory
        self._data: DataStore | None = None
        self.scheduler = Scheduler(
            name, nodes, limits.workers, limits.async_per_worker, limits.grace, self, reports
        )

    async def start(self) -> None:
        """Start the threads that exchange messages, and the store for large data."""
        if self._connections is not None and self._memory_limit != 0:
            self._data = await asyncio.to_thread(
                DataStore, self._loop, self._memory_limit, self._give_back, self._trim
            )
        for target, name in ((self._send_outgoing, "out"), (self._read_unread, "in")):
            # Daemon threads, which do not delay the end of the program.
            thread = threading.Thread(target=target, name=f"rhapsody-workers-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Stop the workers and release everything, after every task has ended."""
        await self.scheduler.stop()
        self._outgoing.put(None)
        self._unread.put(None)
        for thread in self._threads:
            await in_thread(thread.join, JOIN_SECONDS)
        if self._connections is not None:
            self._connections.close()
        if self._data is not None:
            await self._data.close()

    # -- large data -------------------------------------------------------------------------------

    def data_for(self, worker: WorkerState) -> Folders | None:
        """Return the folders of the store that a new worker uses; from any thread.

        None: its data travels in messages, because it runs on another node.
        """
        if self._data is None or not self._is_local(worker):
            return None
        self._data.admit(worker.number)
        return self._data.folders

    def _is_local(self, worker: WorkerState) -> bool:
        return self._connections is not None and worker.node.name == self._connections.node

    def on_dropped(self, worker: WorkerState, segments: list[tuple[str, bool]]) -> None:
        """Note that a worker uses segments of large data no longer."""
        if self._data is not None:
            self._data.drop(worker.number, segments)

    def on_end(self, worker: WorkerState) -> None:
        """Free what a worker that has ended used."""
        if self._data is not None:
            self._data.forget(worker.number)

    def _give_back(self, number: int, segment: str, reusable: bool) -> None:
        assert self._connections is not None
        self._connections.send(number, encode_message(TAKE_BACK, segment, reusable))

    def _trim(self, number: int) -> None:
        assert self._connections is not None
        self._connections.send(number, encode_message(TRIM))

    # -- processes --------------------------------------------------------------------------------

    def new_number(self) -> int:
        """Return the number of a new worker; from any thread."""
        return next(self._numbers)

    def setup(self, number: int, data: Folders | None = None) -> WorkerSetup:
        """Return the setup of a new worker; from any thread."""
        return WorkerSetup(number, self._address, import_path(), data)

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        """Start workers; does not block."""
        raise NotImplementedError

    def kill(self, worker: WorkerState) -> None:
        """Kill a worker; does not block."""
        raise NotImplementedError

    def reap(self, worker: WorkerState) -> None:
        """Report the worker's exit to the scheduler, after its last message; does not block."""
        raise NotImplementedError

    def report_exit(self, worker: WorkerState, exit_code: int | None) -> None:
        """Report a worker's exit to the scheduler; from any thread."""
        self._loop.call_soon_threadsafe(self.scheduler.on_exit, worker.number, exit_code)

    # -- messages to workers ----------------------------------------------------------------------

    def send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls, pairs of a task and a call id, to a worker."""
        if len(calls) == 1 and self._outgoing.empty() and pickles_quickly(calls[0][0].task):
            self._send_calls(worker, calls)  # faster than through the thread
        else:
            self._outgoing.put(functools.partial(self._send_calls, worker, calls))

    def send(self, worker: WorkerState, *message: Any) -> None:
        """Send any other message to a worker."""
        self.send_to(worker.node.name, worker.number, *message)

    def send_to(self, node: str, number: int, *message: Any) -> None:
        """Send any message to a worker of a node."""
        data = encode_message(*message)
        self._outgoing.put(functools.partial(self._deliver, node, number, data))

    def _deliver(self, node: str, number: int, message: bytes) -> None:
        if self._connections is not None and node == self._connections.node:
            self._connections.send(number, message)
        else:
            self._deliver_elsewhere(node, number, message)

    def _deliver_elsewhere(self, node: str, number: int, message: bytes) -> None:
        raise LookupError(f"node {node} is not known")

    def _send_outgoing(self) -> None:
        while (send := self._outgoing.get()) is not None:
            try:
                send()
            except BaseException as error:
                logger.warning(
                    "backend '%s': a message to a worker was not sent: %s", self._name, error
                )
            del send  # it holds the arguments of tasks

    def _send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        message = RunMessage()
        pack: Pack | None = None
        if self._data is not None and self._is_local(worker):
            pack = functools.partial(self._data.pack, worker=worker.number)
        for work, call_id in calls:
            try:
                message.add(self._call(message, work, call_id, pack))
            except BaseException as error:  # from user code, such as a `__reduce__`
                self._report_unsent(worker, call_id, error)
            if message.size > MESSAGE_BYTES:
                self._send_run_message(worker, message)
                message = RunMessage()
        if message.calls:
            self._send_run_message(worker, message)

    def _call(
        self, message: RunMessage, work: Work, call_id: int, pack: Pack | None = None
    ) -> Call:
        task, function, arguments, executable = work.task, -1, None, None
        if work.kind == EXECUTABLE:
            executable = Executable.from_task(task, work.work_dir)
        else:
            function = message.add_function(work.uid, task["function"])
            arguments = dump_arguments(
                work.uid, task.get("args") or (), task.get("kwargs") or {}, pack
            )
        return Call(
            call_id=call_id,
            uid=work.uid,
            urgent=work.timeout is not None,
            concurrent=self._mode_of(work) == CONCURRENT,
            function=function,
            arguments=arguments,
            capture=os.path.join(work.work_dir, work.uid) if task.get("capture_stdio") else None,
            executable=executable,
        )

    def _send_run_message(self, worker: WorkerState, message: RunMessage) -> None:
        try:
            self._deliver(worker.node.name, worker.number, message.encode())
        except Exception as error:
            for call in message.calls:
                reason = TaskExecutionError(call.uid, f"it could not be sent to a worker: {error}")
                self._report_unsent(worker, call.call_id, reason)

    def _report_unsent(self, worker: WorkerState, call_id: int, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self.scheduler.on_unsent, worker.number, call_id, error)

    # -- messages from workers --------------------------------------------------------------------

    def _on_unread(self, number: int, messages: list[WorkerMessage]) -> None:
        # From a worker of the head node, on the loop.
        if self._reads_pending or not all(map(loads_quickly, messages)):
            self._reads_pending += 1
            self._unread.put([(number, messages)])
        else:
            self._dispatch([self._loaded(number, messages)])

    def _read_unread(self) -> None:
        while (batches := self._unread.get()) is not None:
            self.on_unread_batches(batches)
            self._loop.call_soon_threadsafe(self._on_read)

    def _on_read(self) -> None:
        self._reads_pending -= 1

    def on_unread_batches(self, batches: list[MessageBatch]) -> None:
        """Load the payloads of messages, then handle them on the loop; from any thread."""
        loaded = [self._loaded(*batch) for batch in batches]
        self._loop.call_soon_threadsafe(self._dispatch, loaded)

    def _dispatch(self, batches: list[MessageBatch]) -> None:
        if self._gc_enabled:
            gc.enable()  # Dragon disables it while any thread waits for a process
        for batch in batches:
            self._on_messages(*batch)

    def _on_messages(self, number: int, messages: list[WorkerMessage]) -> None:
        self.scheduler.on_messages(number, messages)

    def _loaded(self, number: int, messages: list[WorkerMessage]) -> MessageBatch:
        load = self._data.load if self._data is not None else None
        return number, [load_payload(*message, load) for message in messages]
