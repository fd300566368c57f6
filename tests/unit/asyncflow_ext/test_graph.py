"""The graph of a workflow: components by name, and what they wait for."""

import asyncio
import threading
from typing import Any

import pytest

from asyncflow_ext.report import page_source
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.report.graph import MOST_TASKS, WAITING
from tests.support.engines import ENGINES, make_engine

pytestmark = pytest.mark.asyncflow


@pytest.mark.parametrize("kind", ENGINES)
async def test_graph_shows_what_waits(kind: str, tmp_path: Any) -> None:
    flow = await make_engine(kind, [ConcurrentExecutionBackend()], work_dir=str(tmp_path))
    graph = page_source(flow).current_graph
    gate = threading.Event()

    @flow.function_task
    async def first() -> int:
        await asyncio.to_thread(gate.wait, 30)
        return 1

    @flow.function_task
    async def second(number: int) -> int:
        if number == 1:
            raise ValueError("no")
        return number

    start = first()
    ends = [second(start), second(start)]
    for _ in range(1000):
        nodes = {node.name: node.states for node in graph().nodes}
        if nodes.get("second", {}).get(WAITING) == 2:
            break
        await asyncio.sleep(0.01)
    [edge] = graph().edges
    assert edge == ("first", "second", 2, 2)
    assert {task.name for task in graph().tasks} == {"first", "second"}
    gate.set()
    await asyncio.gather(*ends, return_exceptions=True)
    nodes = {node.name: node.states for node in graph().nodes}
    assert (nodes["first"], nodes["second"]) == ({"DONE": 1}, {"FAILED": 2})
    assert graph().edges[0].waiting == 0
    uses = {task.uid: task.uses for task in graph().tasks}
    assert sorted(map(len, uses.values())) == [0, 1, 1]
    await flow.shutdown()
    assert {node.name for node in graph().nodes} == {"first", "second"}


async def test_large_graph_has_no_single_tasks(tmp_path: Any) -> None:
    flow = await make_engine("ours", [ConcurrentExecutionBackend()], work_dir=str(tmp_path))

    @flow.function_task
    def work(n: int) -> int:
        return n

    await asyncio.gather(*(work(n) for n in range(MOST_TASKS + 1)))
    graph = page_source(flow).current_graph()
    assert graph.nodes[0].states == {"DONE": MOST_TASKS + 1}
    assert graph.tasks == []
    await flow.shutdown()
