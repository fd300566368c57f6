"""The program's links to the agents of other nodes: their processes, and Dragon queues."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from rhapsody.allocation import Node
from rhapsody.backends.dragon import agent as agent_process
from rhapsody.backends.dragon import processes
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

RELEASE_SECONDS = 1.0
"""How long the release of the program's queue may take. It never returns if an agent was killed
while it held the queue's lock."""

RESTART_SECONDS = 1.0
"""Time between the end of an agent and the start of its successor."""

MESSAGES_AT_ONCE = 64
"""Maximum number of queue entries handed over in one go."""

QUEUE_ENTRIES = 4096
"""Capacity of the program's queue; agents wait while it is full."""


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
        self._queue: Any = None
        self._head_id = 0
        self._receiver: threading.Thread | None = None
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        """Start the agents and wait until they are ready.

        Raises:
            BackendError: An agent did not start.
        """
        if not self._agents:
            return
        from dragon.native.queue import Queue
        from dragon.utils import host_id

        self._head_id = host_id()
        self._queue = await asyncio.to_thread(Queue, maxsize=QUEUE_ENTRIES, block_size=1024)
        self._receiver = processes.in_thread(self._receive, "in")
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
        if self._receiver is None:
            return
        agents = list(self._agents.values())
        for agent in agents:
            if agent.restart is not None:
                agent.restart.cancel()
                agent.ended.set()
            elif agent.inbox is not None:
                self._tell_to_end(agent.inbox)
        if not await done_within(_all_set(agent.ended for agent in agents), STOP_SECONDS):
            self._kill(agents)
        releasing = processes.in_thread(self._release_queue, "close", self._receiver)
        await asyncio.to_thread(releasing.join, RELEASE_SECONDS)
        if releasing.is_alive():
            logger.error(
                "backend '%s': a killed agent left the backend's queue locked; its memory is not "
                "released",
                self._name,
            )

    def _release_queue(self, receiver: threading.Thread) -> None:
        self._queue.put(b"")
        receiver.join()
        self._queue.destroy()

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
        arguments = (self._run, agent.node.name, self._queue, os.getpid(), self._head_id)
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
        successor.restart = self._loop.call_later(RESTART_SECONDS, self._restart, successor)

    def _restart(self, agent: _Agent) -> None:
        agent.restart = None
        processes.in_thread(self._start_and_watch, "watch", [agent])

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

    def _receive(self) -> None:
        while True:
            entries = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(entries) < MESSAGES_AT_ONCE:
                    entries.append(self._queue.get_nowait())
            if b"" in entries:
                return
            batches: list[MessageBatch] = []
            for entry in map(pickle.loads, entries):
                if isinstance(entry, tuple):  # from a new agent: its node and its queue
                    self._loop.call_soon_threadsafe(self._on_ready, *entry)
                else:
                    batches += entry
            if batches:
                self._events.on_unread_batches(batches)
            del entries, batches


async def _all_set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
