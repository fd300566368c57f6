"""The graph of a run: its functions and executables, their tasks by state, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rhapsody.backends.protocol import TaskStates
from rhapsody.report.runs import BackendRun

__all__ = ["GRAPH_STATES", "MOST_TASKS", "Edge", "Graph", "Node", "TaskNode", "graph_of"]

WAITING = "WAITING"
"""The state of a task whose dependencies have not ended; its backend does not have it yet."""
GRAPH_STATES = (
    TaskStates.DONE,
    TaskStates.FAILED,
    TaskStates.CANCELED,
    TaskStates.RUNNING,
    TaskStates.PENDING,
    WAITING,
)
"""The states in the order in which they are drawn."""
MOST_TASKS = 1000
"""Tasks that are drawn one by one; of a larger graph only the functions are drawn."""
MOST_NODES = 300
"""Names that are drawn, those with most tasks."""


class Node(NamedTuple):
    """All tasks of one name.

    Attributes:
        name: The name of the function or executable.
        kind: What the tasks are, such as "function"; "" if unknown.
        states: Number of tasks by state, one of `GRAPH_STATES`.
    """

    name: str
    kind: str
    states: Mapping[str, int]


class Edge(NamedTuple):
    """The tasks of one name that use results of another.

    Attributes:
        source: The name of the tasks whose results are used.
        target: The name of the tasks that use them.
        number: Number of results used.
        waiting: How many of these have not been computed yet.
    """

    source: str
    target: str
    number: int
    waiting: int


class TaskNode(NamedTuple):
    """One task.

    Attributes:
        uid: The task's uid.
        name: Its name.
        state: Its state, one of `GRAPH_STATES`.
        uses: The uids of the tasks whose results it uses.
    """

    uid: str
    name: str
    state: str
    uses: Sequence[str]


class Graph(NamedTuple):
    """The graph of a run.

    Attributes:
        nodes: One for each name.
        edges: One for each pair of names.
        tasks: The single tasks; empty if there are more than `MOST_TASKS`.
    """

    nodes: Sequence[Node]
    edges: Sequence[Edge] = ()
    tasks: Sequence[TaskNode] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the graph as a dict for JSON; nodes are referred to by their number."""
        nodes = self.nodes
        if len(nodes) > MOST_NODES:
            nodes = sorted(nodes, key=lambda node: -sum(node.states.values()))[:MOST_NODES]
        numbers = {node.name: number for number, node in enumerate(nodes)}
        task_numbers = {task.uid: number for number, task in enumerate(self.tasks)}
        return {
            "states": GRAPH_STATES,
            "nodes": [
                [node.name, node.kind, [node.states.get(state, 0) for state in GRAPH_STATES]]
                for node in nodes
            ],
            "left": len(self.nodes) - len(nodes),
            "edges": [
                [numbers[edge.source], numbers[edge.target], edge.number, edge.waiting]
                for edge in self.edges
                if edge.source in numbers and edge.target in numbers
            ],
            "tasks": [[task.uid, task.name, GRAPH_STATES.index(task.state)] for task in self.tasks],
            "taskEdges": [
                [task_numbers[uid], number]
                for number, task in enumerate(self.tasks)
                for uid in task.uses
                if uid in task_numbers
            ],
        }


def graph_of(runs: Iterable[BackendRun]) -> Graph:
    """Return the graph of tasks that do not depend on each other: nodes without edges."""
    states: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, counts in run.history.ended_by_name.items():
            of_name = states.setdefault(name, {})
            for state, number in counts.items():
                of_name[state] = of_name.get(state, 0) + number
        for name, state in run.active_names():
            of_name = states.setdefault(name, {})
            of_name[state] = of_name.get(state, 0) + 1
    return Graph([Node(name, "", counts) for name, counts in states.items()])
