"""The program's links to the agents of other nodes: their processes, and Dragon queues."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from rhapsody.allocation import Node
from rhapsody.backends.dragon import agent as agent_process
from rhapsody.backends.dragon import processes
from rhapsody.backends.dragon.program_queue import ProgramQueue
from rhapsody.backends.workers.messages import MessageBatch
from rhapsody.errors import BackendError
from rhapsody.waiting import done_within

__all__ = ["AgentEvents", "AgentLinks"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
START_SECONDS_PER_AGENT = 0.1
"""Longest wait for all agents to start: `START_SECONDS`, and this much more for each."""

STOP_SECONDS = 10.0
"""How long agents may take to end. They need milliseconds. An agent whose process is starting must
finish its start first: killed during that, it might leave a queue of Dragon locked."""

RESTART_SECONDS = 1.0
"""Time between the end of an agent and the start of its successor."""


class AgentEvents(Protocol):
    """Handles what agents report."""

    def on_unread_batches(self, batches: list[MessageBatch]) -> None:
        """Handle messages from workers of other nodes; called in the receiving thread."""

    def on_node_lost(self, node: Node) -> None:
        """Handle the end of an agent, and of all connections to its workers; called on the loop."""


class _Agent:
    """The agent of one node, as the program sees it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.puid = 0
        self.outbox: Any = None  # the program's queue that it writes
        self.inbox: Any = None
        self.restart: asyncio.TimerHandle | None = None  # the pause before its start
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()


class AgentLinks:
    """The links to the agents of other nodes.

    Args:
        name: The backend's name, for errors and the log.
        nodes: Nodes that need an agent.
        run: The unique name of the backend's run.
        events: Handles what agents report.
    """

    def __init__(self, name: str, nodes: Sequence[Node], run: str, events: AgentEvents) -> None:
        self._name = name
        self._run = run
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._agents = {node.name: _Agent(node) for node in nodes}
        self._queue = ProgramQueue(name, self._on_entries)
        self._mending = asyncio.Lock()
        self._mends: set[asyncio.Task[None]] = set()
        self._head_id = 0
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        """Start the agents and wait until they are ready.

        Raises:
            BackendError: An agent did not start.
        """
        if not self._agents:
            return
        from dragon.utils import host_id

        self._head_id = host_id()
        await self._queue.open()
        agents = list(self._agents.values())
        processes.in_thread(self._start_and_watch, "watch", agents)
        try:
            seconds = START_SECONDS + START_SECONDS_PER_AGENT * len(agents)
            ready = await done_within(_all_set(agent.ready for agent in agents), seconds)
            missing = [agent for agent in agents if agent.inbox is None]
            if not ready or missing:
                self._kill(missing)  # they had time enough
                names = ", ".join(agent.node.name for agent in missing)
                raise BackendError(
                    self._name,
                    f"its agent did not start on {names}; see what it wrote to standard error",
                )
        except BaseException:
            await self.stop()
            raise
        self._started = True

    async def stop(self) -> None:
        """Stop the agents, after all workers have ended."""
        self._stopping = True
        if self._queue.current is None:
            return
        for mend in self._mends:
            mend.cancel()
        if self._mends:
            await asyncio.wait(self._mends)
        agents = list(self._agents.values())
        for agent in agents:
            if agent.restart is not None:
                agent.restart.cancel()
                agent.ended.set()
            elif agent.inbox is not None:
                self._tell_to_end(agent.inbox)
        if not await done_within(_all_set(agent.ended for agent in agents), STOP_SECONDS):
            self._kill(agents)
        await self._queue.close()

    def _kill(self, agents: Iterable[_Agent]) -> None:
        for agent in agents:
            if agent.puid and not agent.ended.is_set():
                self._loop.run_in_executor(None, processes.kill, agent.puid)

    def _tell_to_end(self, inbox: Any) -> None:
        self._loop.run_in_executor(None, inbox.put, b"")

    # -- agents -----------------------------------------------------------------------------------

    def _start_and_watch(self, agents: Sequence[_Agent]) -> None:
        processes.for_each(self._start_one, agents)
        alive = {agent.puid: agent for agent in agents if agent.puid}
        while alive:
            for puid, _ in processes.wait_for_any(list(alive)):
                self._loop.call_soon_threadsafe(self._on_end, alive.pop(puid))

    def _start_one(self, agent: _Agent) -> None:
        if self._stopping:  # while others were started
            self._loop.call_soon_threadsafe(self._on_end, agent)
            return
        outbox = agent.outbox = self._queue.current
        arguments = (self._run, agent.node.name, outbox, os.getpid(), self._head_id)
        try:
            agent.puid = processes.start(agent.node, agent_process.serve, *arguments)
        except Exception as error:
            logger.error(
                "backend '%s': the agent on node %s could not be started: %s",
                self._name,
                agent.node.name,
                error,
            )
            self._loop.call_soon_threadsafe(self._on_end, agent)
        else:
            if outbox is not self._queue.current:  # it was replaced meanwhile
                processes.kill(agent.puid)

    def _on_ready(self, node: str, inbox: Any) -> None:
        agent = self._agents[node]
        agent.inbox = inbox
        agent.ready.set()
        if self._stopping:  # it missed the request to end
            self._tell_to_end(inbox)

    def _on_end(self, agent: _Agent) -> None:
        agent.ended.set()
        agent.ready.set()  # `start` need not wait for it any longer
        if self._stopping or not self._started:
            return
        logger.error(
            "backend '%s': the agent on node %s ended and is restarted",
            self._name,
            agent.node.name,
        )
        successor = self._agents[agent.node.name] = _Agent(agent.node)
        self._events.on_node_lost(agent.node)
        mend = self._loop.create_task(self._mend_queue())
        self._mends.add(mend)
        mend.add_done_callback(self._mends.discard)
        successor.restart = self._loop.call_later(RESTART_SECONDS, self._restart, successor)

    def _restart(self, agent: _Agent) -> None:
        agent.restart = None
        processes.in_thread(self._start_and_watch, "watch", [agent])

    async def _mend_queue(self) -> None:
        """Replace the queue if an agent that ended left it locked; all agents need the new one."""
        async with self._mending:
            if not await self._queue.is_locked():
                return
            logger.error(
                "backend '%s': a killed agent left the backend's queue locked; all agents are "
                "restarted with another queue",
                self._name,
            )
            await self._queue.open()
            self._kill(a for a in self._agents.values() if a.outbox is not self._queue.current)

    # -- messages ---------------------------------------------------------------------------------

    def send(self, node: str, number: int, message: bytes) -> None:
        """Send a message to a worker of a node; may block for a moment.

        Raises:
            BackendError: The node's agent does not run.
        """
        inbox = self._agents[node].inbox
        if inbox is None:
            raise BackendError(self._name, f"its agent on node {node} does not run")
        inbox.put(pickle.dumps((number, message), protocol=5))

    def _on_entries(self, entries: list[bytes]) -> None:
        batches: list[MessageBatch] = []
        for entry in map(pickle.loads, entries):
            if isinstance(entry, tuple):  # from a new agent: its node and its queue
                self._loop.call_soon_threadsafe(self._on_ready, *entry)
            else:
                batches += entry
        if batches:
            self._events.on_unread_batches(batches)


async def _all_set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
