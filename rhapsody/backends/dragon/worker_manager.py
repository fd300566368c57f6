"""The workers of a Dragon backend: their processes on every node, and jobs of several ranks.

Blocking work runs in threads: one for each group of new workers starts them and waits until each
has connected or ended.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from rhapsody.allocation import Node
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon import processes, worker_process
from rhapsody.backends.dragon.agent_links import AgentLinks
from rhapsody.backends.dragon.jobs import CALL_ID, Jobs
from rhapsody.backends.workers.connections import Connections
from rhapsody.backends.workers.manager import Limits, WorkerManager
from rhapsody.backends.workers.messages import RunMessage, WorkerMessage
from rhapsody.backends.workers.worker_state import WorkerState

__all__ = ["DragonWorkers"]

logger = logging.getLogger(__name__)

AGENTS_EVERYWHERE = False
"""Whether the head node has an agent too, to test agents on a single node."""

CHECK_SECONDS = 1.0
"""Time between checks of which new workers have connected."""

EXIT_SECONDS = 2.0
"""How long a process may take to exit after its connection was closed."""

START_SECONDS = 3.0
"""Longest time until a worker that starts is killed."""

POLL_SECONDS = 0.02
"""Time between checks whether such a worker has started."""


class DragonWorkers(WorkerManager):
    """Starts and ends the workers of a Dragon backend and exchanges messages with them.

    Args:
        name: The backend's name.
        nodes: Nodes that workers may run on.
        limits: Limits of the workers.
        mode_of: Returns the mode that a task runs in.
        reports: Takes reports about tasks.

    Attributes:
        jobs: Runs tasks of several ranks.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        limits: Limits,
        mode_of: Callable[[Work], str],
        reports: TaskReports,
    ) -> None:
        self._run = f"rhapsody-dragon-{uuid.uuid4().hex[:12]}"
        super().__init__(name, nodes, limits, mode_of, reports, address=self._run)
        self._local = [node for node in nodes if node.is_head and not AGENTS_EVERYWHERE]
        others = [node for node in nodes if node not in self._local]
        self._agent_links = AgentLinks(name, others, self._run, self)
        self._to_reap: list[WorkerState] = []
        self.jobs = Jobs(nodes, limits.grace, self, reports)

    async def start(self) -> None:
        """Start the agents of other nodes, and listen for workers.

        Raises:
            BackendError: An agent did not start.
        """
        await self._agent_links.start()
        for node in self._local:
            address = worker_process.node_address(self._run)
            self._connections = Connections(node.name, address, self._on_unread)
        await super().start()

    async def stop(self) -> None:
        """Stop the workers and the agents, after every task has ended."""
        await super().stop()
        await self._agent_links.stop()

    # -- processes --------------------------------------------------------------------------------

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        """Start workers."""
        processes.in_thread(self._start_and_watch, "start", workers)

    def _start_and_watch(self, workers: Sequence[WorkerState]) -> None:
        processes.for_each(self._start_one, workers)
        # Once a worker has connected, the end of its connection reports its exit.
        while silent := {w.handle: w for w in workers if w.handle and not w.has_reported}:
            for puid, exit_code in processes.wait_for_any(list(silent), CHECK_SECONDS):
                self.report_exit(silent[puid], exit_code)

    def _start_one(self, worker: WorkerState) -> None:
        if worker.retiring:  # killed before its start
            self.report_exit(worker, None)
            return
        try:
            setup = self.setup(worker.number, self.data_for(worker))
            worker.handle = processes.start(worker.node, worker_process.serve, setup)
        except Exception as error:
            logger.error(
                "backend '%s': a worker could not be started on node %s: %s",
                self._name,
                worker.node.name,
                error,
            )
            self.report_exit(worker, None)

    def reap(self, worker: WorkerState) -> None:
        """Report the worker's exit to the scheduler, after its last message."""
        if not self._to_reap:
            self._loop.call_soon(self._reap_all)
        self._to_reap.append(worker)

    def _reap_all(self) -> None:
        workers, self._to_reap = self._to_reap, []
        self._loop.run_in_executor(None, self._wait_for_exits, workers)

    def _wait_for_exits(self, workers: Sequence[WorkerState]) -> None:
        for worker in workers:
            while not (worker.handle or worker.has_exited):  # `start` has not returned yet
                time.sleep(0.01)
        left = {worker.handle: worker for worker in workers}
        while left and (ended := processes.wait_for_any(list(left), EXIT_SECONDS)):
            for puid, exit_code in ended:
                self.report_exit(left.pop(puid), exit_code)
        for worker in left.values():
            processes.kill(worker.handle)
            self.report_exit(worker, None)

    def kill(self, worker: WorkerState) -> None:
        """Kill a worker, or one that starts when it has started or after `START_SECONDS`.

        A process that starts uses channels of Dragon itself. If it is killed while it has locked
        one, the whole runtime hangs.
        """
        worker.retiring = True
        self._kill_started(worker, self._loop.time() + START_SECONDS)

    def _kill_started(self, worker: WorkerState, deadline: float) -> None:
        if worker.has_exited:
            return
        if worker.handle and (worker.pid or self._loop.time() >= deadline):
            self._loop.run_in_executor(None, processes.kill, worker.handle)
        else:
            self._loop.call_later(POLL_SECONDS, self._kill_started, worker, deadline)

    def on_node_lost(self, node: Node) -> None:
        """Handle the end of a node's agent."""
        self.scheduler.on_node_lost(node)
        self.jobs.on_node_lost(node)

    # -- messages ---------------------------------------------------------------------------------

    def send_rank_call(self, node: str, number: int, work: Work, rank: int) -> None:
        """Send a rank its only call; does not block.

        Args:
            node: The rank's node.
            number: Its worker number.
            work: The task.
            rank: Its index in the job, which is part of the names of captured output.
        """
        # In the thread, since pickling may be slow and runs code of the user's objects.
        self._outgoing.put(functools.partial(self._send_rank_call, node, number, work, rank))

    def _send_rank_call(self, node: str, number: int, work: Work, rank: int) -> None:
        try:
            self._deliver(node, number, self._rank_message(work, rank))
        except BaseException as error:
            self._loop.call_soon_threadsafe(self.jobs.on_unsent, number, error)

    def _rank_message(self, work: Work, rank: int) -> bytes:
        message = RunMessage()
        call = self._call(message, work, CALL_ID)._replace(concurrent=False)
        if call.capture is not None:
            call = call._replace(capture=f"{call.capture}.{rank}")
            if call.executable is not None:
                renamed = dataclasses.replace(call.executable, uid=f"{work.uid}.{rank}")
                call = call._replace(executable=renamed)
        message.add(call)
        return message.encode()

    def _deliver_elsewhere(self, node: str, number: int, message: bytes) -> None:
        self._agent_links.send(node, number, message)

    def _on_messages(self, number: int, messages: list[WorkerMessage]) -> None:
        if not self.jobs.on_messages(number, messages):
            super()._on_messages(number, messages)
