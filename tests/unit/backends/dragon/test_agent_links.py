"""The links to agents, with simulated agents."""

import asyncio
import logging
import pickle
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.dragon import agent_links, processes, program_queue
from rhapsody.backends.dragon.agent_links import AgentLinks
from rhapsody.backends.workers.messages import PLAIN_VALUE, MessageBatch
from rhapsody.errors import BackendError
from tests.support.fake_dragon import FakeQueue
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("dragon_modules")

NODES = [Node("b", 4), Node("c", 4)]
BATCH: MessageBatch = (7, [(1, PLAIN_VALUE, 0.5, b"payload")])


class Events:
    """Records what agents report."""

    def __init__(self) -> None:
        self.batches: list[MessageBatch] = []
        self.lost: list[Node] = []

    def on_unread_batches(self, batches: list[MessageBatch]) -> None:
        self.batches += batches

    def on_node_lost(self, node: Node) -> None:
        self.lost.append(node)


class SimulatedAgents:
    """Agents that run in this process: each has an inbox, and ends on request."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.failing: set[str] = set()
        self.started: list[str] = []
        self.messages: list[Any] = []
        self.inboxes: dict[str, FakeQueue] = {}
        self.outbox: FakeQueue | None = None
        self._ended: queue.Queue[int] = queue.Queue()
        self._puids: dict[str, int] = {}

    def start(self, node: Node, target: Callable[..., None], *args: Any) -> int:
        run, name, self.outbox, *_ = args
        assert (run, name) == ("run", node.name)
        if name in self.failing:
            raise RuntimeError("no such node")
        self.started.append(name)
        puid = self._puids[name] = len(self.started)
        if name not in self.silent:
            inbox = self.inboxes[name] = FakeQueue()
            arguments = (puid, name, inbox, self.outbox)
            threading.Thread(target=self._run, args=arguments, daemon=True).start()
        return puid

    def _run(self, puid: int, name: str, inbox: FakeQueue, outbox: FakeQueue) -> None:
        outbox.put(pickle.dumps((name, inbox)))
        while (message := inbox.get()) != b"":
            self.messages.append(pickle.loads(message))
        self._ended.put(puid)

    def kill(self, puid: int) -> None:
        self._ended.put(puid)

    def kill_node(self, name: str) -> None:
        self.kill(self._puids[name])

    def wait_for_any(
        self, puids: list[int], seconds: float | None = None
    ) -> list[tuple[int, int | None]]:
        while (puid := self._ended.get()) not in puids:
            self._ended.put(puid)
            threading.Event().wait(0.01)
        return [(puid, -9)]


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> SimulatedAgents:
    agents = SimulatedAgents()
    for name in ("start", "kill", "wait_for_any"):
        monkeypatch.setattr(processes, name, getattr(agents, name))
    monkeypatch.setattr(agent_links, "RESTART_SECONDS", 0.01)
    return agents


@pytest.fixture
def events() -> Events:
    return Events()


async def test_start_waits_for_every_agent(agents: SimulatedAgents, events: Events) -> None:
    links = AgentLinks("dragon", NODES, "run", events)
    await links.start()
    assert sorted(agents.started) == ["b", "c"]
    await links.stop()
    assert agents.outbox is not None
    assert agents.outbox.destroyed
    assert not events.lost


async def test_without_other_nodes_no_queue_is_made(
    agents: SimulatedAgents, events: Events
) -> None:
    links = AgentLinks("dragon", [], "run", events)
    await links.start()
    await links.stop()
    assert agents.outbox is None


async def test_messages_pass_in_both_directions(agents: SimulatedAgents, events: Events) -> None:
    links = AgentLinks("dragon", NODES[:1], "run", events)
    await links.start()
    links.send("b", 7, b"message")
    await until(lambda: agents.messages == [(7, b"message")])
    assert agents.outbox is not None
    agents.outbox.put(pickle.dumps([BATCH, BATCH]))
    await until(lambda: events.batches == [BATCH, BATCH])
    await links.stop()


async def test_failed_start_of_an_agent_is_an_error(
    agents: SimulatedAgents, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    agents.failing.add("c")
    links = AgentLinks("dragon", NODES, "run", events)
    with caplog.at_level(logging.ERROR), pytest.raises(BackendError, match="did not start on c"):
        await links.start()
    assert "the agent on node c could not be started: no such node" in caplog.text


async def test_unready_agent_is_killed(
    agents: SimulatedAgents, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents.silent.add("c")
    monkeypatch.setattr(agent_links, "START_SECONDS", 0.1)
    monkeypatch.setattr(agent_links, "STOP_SECONDS", 600.0)  # it is killed before
    links = AgentLinks("dragon", NODES, "run", events)
    with pytest.raises(BackendError, match="its agent did not start on c;"):
        await links.start()
    assert not events.lost


async def test_node_of_dead_agent_is_lost_and_gets_a_new_agent(
    agents: SimulatedAgents, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    links = AgentLinks("dragon", NODES, "run", events)
    await links.start()
    with caplog.at_level(logging.ERROR):
        agents.kill_node("b")
        await until(lambda: events.lost == [NODES[0]])
    assert "the agent on node b ended and is restarted" in caplog.text
    await until(lambda: agents.started.count("b") == 2)

    def is_there() -> bool:
        try:
            links.send("b", 7, b"again")
        except BackendError:
            return False
        return True

    await until(is_there)
    await links.stop()


async def test_message_to_a_node_without_agent_is_an_error(
    agents: SimulatedAgents, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_links, "RESTART_SECONDS", 60.0)
    links = AgentLinks("dragon", NODES, "run", events)
    await links.start()
    agents.kill_node("b")
    await until(lambda: bool(events.lost))
    with pytest.raises(BackendError, match="its agent on node b does not run"):
        links.send("b", 7, b"message")
    monkeypatch.setattr(agent_links, "STOP_SECONDS", 600.0)
    await links.stop()  # the restart of the agent is withdrawn
    assert agents.started.count("b") == 1


async def test_stop_withdraws_agents_whose_processes_were_not_started(
    agents: SimulatedAgents, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CONCURRENT_STARTS", 1)
    monkeypatch.setattr(agent_links, "STOP_SECONDS", 600.0)
    first_starts, goes_on = threading.Event(), threading.Event()
    start = agents.start

    def start_slowly(*args: Any) -> int:
        first_starts.set()
        assert goes_on.wait(30)
        return start(*args)

    monkeypatch.setattr(processes, "start", start_slowly)
    links = AgentLinks("dragon", NODES, "run", events)
    starting = asyncio.ensure_future(links.start())
    await asyncio.to_thread(first_starts.wait, 30)
    starting.cancel()
    await until(lambda: links._stopping)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert agents.started == ["b"]


async def test_queue_left_locked_does_not_delay_stop(
    agents: SimulatedAgents,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(program_queue, "RELEASE_SECONDS", 0.05)
    links = AgentLinks("dragon", NODES[:1], "run", events)
    await links.start()
    outbox, unlocked = agents.outbox, threading.Event()
    assert outbox is not None
    put = outbox.put

    def put_when_unlocked(message: bytes) -> None:
        unlocked.wait(30)
        put(message)

    monkeypatch.setattr(outbox, "put", put_when_unlocked)
    with caplog.at_level(logging.ERROR):
        await links.stop()
    assert "left the backend's queue locked" in caplog.text
    unlocked.set()
    await until(lambda: outbox.destroyed)


async def test_queue_that_a_killed_agent_left_locked_is_replaced_for_all_agents(
    agents: SimulatedAgents,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(program_queue, "PROBE_SECONDS", 0.05)
    links = AgentLinks("dragon", NODES, "run", events)
    await links.start()
    locked, unlocked = agents.outbox, threading.Event()
    assert locked is not None
    monkeypatch.setattr(locked, "put", lambda message: unlocked.wait(30))
    with caplog.at_level(logging.ERROR):
        agents.kill_node("b")
        await until(lambda: {node.name for node in events.lost} == {"b", "c"})
    assert "left the backend's queue locked; all agents are restarted with another" in caplog.text
    await until(lambda: all(agent.inbox is not None for agent in links._agents.values()))
    assert agents.outbox is not locked
    assert agents.outbox is not None
    agents.outbox.put(pickle.dumps([BATCH]))
    await until(lambda: events.batches == [BATCH])
    await links.stop()
    assert agents.outbox.destroyed
    unlocked.set()
    locked._queue.put(b"")


async def test_queue_that_a_killed_agent_left_whole_is_kept(
    agents: SimulatedAgents, events: Events
) -> None:
    links = AgentLinks("dragon", NODES, "run", events)
    await links.start()
    agents.kill_node("b")
    await until(lambda: agents.started.count("b") == 2 and not links._mends)
    assert links._queue.current is agents.outbox
    assert events.lost == [NODES[0]]
    await links.stop()
