"""The graph of tasks by name."""

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.report.graph import GRAPH_STATES, MOST_NODES, Edge, Graph, Node, graph_of
from tests.support.held import HeldBackend


def work() -> None:
    pass


def broken() -> None:
    raise ValueError


async def test_nodes_of_a_session_count_tasks_by_name() -> None:
    held = HeldBackend()
    async with Session([ConcurrentExecutionBackend(), held]) as session:
        done = [ComputeTask(function=f, backend="concurrent") for f in (work, work, broken)]
        await session.submit_tasks(done)
        await session.wait_tasks(done)
        await session.submit_tasks([ComputeTask(function=work, backend="held")])
        await held.wait_entered()
        nodes = {n.name: n.states for n in graph_of(session._observation.runs.values()).nodes}
        held.release()
    assert nodes["work"]["DONE"] == 2
    assert nodes["work"]["RUNNING"] == 1
    assert nodes["broken"]["FAILED"] == 1


def test_largest_nodes_are_drawn() -> None:
    nodes = [Node(str(n), "", {"DONE": n + 1}) for n in range(MOST_NODES + 10)]
    edges = [Edge("0", "1", 1, 0), Edge("20", "21", 3, 2)]
    data = Graph(nodes, edges).as_dict()
    assert len(data["nodes"]) == MOST_NODES
    assert data["left"] == 10
    [[source, target, number, waiting]] = data["edges"]
    assert (data["nodes"][source][0], data["nodes"][target][0], number, waiting) == (
        "20",
        "21",
        3,
        2,
    )
    assert data["states"] == GRAPH_STATES
