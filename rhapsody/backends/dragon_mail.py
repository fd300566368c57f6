"""Mail to and from other hosts: the agents there, and Dragon queues between them and the head."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rhapsody.api.errors import BackendError
from rhapsody.backends import dragon_agent, dragon_processes
from rhapsody.backends.dragon_hub import Address, Bundle
from rhapsody.backends.dragon_runtime import Host
from rhapsody.waiting import done_within

__all__ = ["Mail"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
START_SECONDS_EACH = 0.1
"""How long the agents of all hosts may take to be there: so long, and so much longer for each."""

STOP_SECONDS = 10.0
"""How long agents may take to end: milliseconds, but one that is only starting has to be there
first."""

CLOSE_SECONDS = 1.0
"""How long the head's queue may take to be released, which takes for ever where an agent was killed
that had locked it."""

RESPAWN_SECONDS = 1.0
"""Time between the end of an agent and the start of another."""

DRAINED = 64
"""Messages taken in before the service loop hears of them."""

CAPACITY = 4096
"""Messages that may wait for the head before agents do."""


class _Agent:
    """The agent of one host, as the head sees it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.puid = 0
        self.inbox: Any = None
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()


class Mail:
    """The agents of other hosts, and what passes between them and the head.

    Args:
        name: The backend's name, for messages.
        hosts: Where an agent is to be.
        address: Where agents listen for workers.
        on_bundles: Called with what workers had to say, in the receiving thread.
        on_lost: Called when the agent of a host has ended, and all links to workers with it; on
            the loop.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[Host],
        address: Address,
        on_bundles: Callable[[list[Bundle]], None],
        on_lost: Callable[[Host], None],
    ) -> None:
        self._name = name
        self._address = address
        self._on_bundles = on_bundles
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._agents = {host.name: _Agent(host) for host in hosts}
        self._queue: Any = None
        self._host_id = 0
        self._receiver: threading.Thread | None = None
        self._is_open = False
        self._closing = False

    async def open(self) -> None:
        """Start the agents and wait until they are there; nothing where there are no other hosts.

        Raises:
            BackendError: An agent did not start.
        """
        if not self._agents:
            return
        from dragon.native.queue import Queue
        from dragon.utils import host_id

        self._host_id = host_id()
        self._queue = await asyncio.to_thread(Queue, maxsize=CAPACITY, block_size=1024)
        self._receiver = dragon_processes.in_thread(self._receive, "in")
        agents = list(self._agents.values())
        dragon_processes.in_thread(self._start, "watch", agents)
        try:
            seconds = START_SECONDS + START_SECONDS_EACH * len(agents)
            ready = await done_within(_all(agent.ready for agent in agents), seconds)
            lacking = [agent.host.name for agent in agents if agent.inbox is None]
            if not ready or lacking:
                raise BackendError(
                    self._name,
                    f"its agent did not start on {', '.join(lacking)}; what it wrote to standard "
                    "error says why",
                )
        except BaseException:
            await self.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """End the agents, once all workers have ended."""
        self._closing = True
        if self._receiver is None:
            return
        agents = list(self._agents.values())
        for agent in agents:
            if agent.inbox is not None:
                self._tell_to_end(agent.inbox)
        if not await done_within(_all(agent.ended for agent in agents), STOP_SECONDS):
            for agent in agents:
                if not agent.ended.is_set():
                    self._loop.run_in_executor(None, dragon_processes.kill, agent.puid)
        closing = dragon_processes.in_thread(self._release, "close", self._receiver)
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)
        if closing.is_alive():
            logger.error("backend '%s': its queue was left locked and stays", self._name)

    def _release(self, receiver: threading.Thread) -> None:
        self._queue.put(b"")
        receiver.join()
        self._queue.destroy()

    def _tell_to_end(self, inbox: Any) -> None:
        self._loop.run_in_executor(None, inbox.put, b"")

    # -- agents -----------------------------------------------------------------------------------

    def _start(self, agents: Sequence[_Agent]) -> None:
        dragon_processes.for_each(self._start_one, agents)
        alive = {agent.puid: agent for agent in agents if agent.puid}
        while alive:
            for puid, _ in dragon_processes.ended(list(alive)):
                self._loop.call_soon_threadsafe(self._on_end, alive.pop(puid))

    def _start_one(self, agent: _Agent) -> None:
        arguments = (self._address, agent.host.name, self._queue, os.getpid(), self._host_id)
        try:
            agent.puid = dragon_processes.start(agent.host, dragon_agent.serve, *arguments)
        except Exception as error:
            logger.error("backend '%s': no agent on %s: %s", self._name, agent.host.name, error)
            self._loop.call_soon_threadsafe(self._on_end, agent)

    def _on_ready(self, host: str, inbox: Any) -> None:
        agent = self._agents[host]
        agent.inbox = inbox
        agent.ready.set()
        if self._closing:  # too late for it to be told with the others
            self._tell_to_end(inbox)

    def _on_end(self, agent: _Agent) -> None:
        agent.ended.set()
        agent.ready.set()  # there is nothing more to wait for
        if self._closing or not self._is_open:
            return
        logger.error("backend '%s': its agent on %s has ended", self._name, agent.host.name)
        successor = self._agents[agent.host.name] = _Agent(agent.host)
        self._on_lost(agent.host)
        self._loop.call_later(RESPAWN_SECONDS, self._restart, successor)

    def _restart(self, agent: _Agent) -> None:
        if self._closing:
            agent.ended.set()
        else:
            dragon_processes.in_thread(self._start, "watch", [agent])

    # -- messages ---------------------------------------------------------------------------------

    def put(self, host: str, number: int, message: bytes) -> None:
        """Send a message to a worker of a host; blocks for a moment.

        Raises:
            BackendError: There is no agent.
        """
        inbox = self._agents[host].inbox
        if inbox is None:
            raise BackendError(self._name, f"its agent on {host} is not there")
        inbox.put(pickle.dumps((number, message), protocol=5))

    def _receive(self) -> None:
        while True:
            messages = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(messages) < DRAINED:
                    messages.append(self._queue.get_nowait())
            if b"" in messages:
                return
            bundles: list[Bundle] = []
            for message in map(pickle.loads, messages):
                if isinstance(message, tuple):
                    self._loop.call_soon_threadsafe(self._on_ready, *message)
                else:
                    bundles += message
            if bundles:
                self._on_bundles(bundles)
            del messages, bundles


async def _all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
