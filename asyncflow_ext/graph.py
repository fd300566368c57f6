"""The graph of a workflow for its report: components by name, and which results they use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from asyncflow_ext.component import Component, Stage, is_pending
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.graph import MOST_TASKS, WAITING, Edge, Graph, Node, TaskNode

__all__ = ["ComponentGraph", "stock_graph"]

ENDS = {
    Stage.DONE: TaskStates.DONE,
    Stage.KEPT: TaskStates.DONE,
    Stage.FAILED: TaskStates.FAILED,
    Stage.CANCELLED: TaskStates.CANCELED,
}


class ComponentGraph:
    """Counts the components of an engine by name, and the results that they use.

    `created` and `ended` are called on the engine's loop, for every component; `graph` in any
    thread.
    """

    def __init__(self) -> None:
        self._ended: dict[tuple[str, Stage], int] = {}
        self._kinds: dict[str, str] = {}
        self._edges: dict[tuple[str, str], int] = {}
        self._first: dict[str, _First] = {}
        self._number = 0

    def created(self, component: Component) -> None:
        """Count a new component, and the results that it uses."""
        self._number += 1
        name = component.name
        if name not in self._kinds:
            self._kinds[name] = component.kind
        dependencies = component.dependencies
        if dependencies:
            edges = self._edges
            for dependency in dependencies:
                edge = (getattr(dependency, "name", ""), name)
                edges[edge] = edges.get(edge, 0) + 1
        if self._number <= MOST_TASKS:
            uses = tuple(getattr(dependency, "uid", "") for dependency in dependencies)
            self._first[component.uid] = _First(name, uses)

    def ended(self, component: Component) -> None:
        """Count the end of a component."""
        key = (component.name, component.stage)
        self._ended[key] = self._ended.get(key, 0) + 1
        if (first := self._first.get(component.uid)) is not None:
            first.state = ENDS.get(component.stage, TaskStates.CANCELED)

    def graph(self, active: Iterable[Any]) -> Graph:
        """Return the graph.

        Args:
            active: The components that have not ended.
        """
        states: dict[str, dict[str, int]] = {name: {} for name in self._kinds.copy()}
        for (name, stage), number in self._ended.copy().items():
            _count(states, name, ENDS.get(stage, TaskStates.CANCELED), number)
        waiting: dict[tuple[str, str], int] = {}
        for component in active:
            if not isinstance(component, Component):
                continue
            state = _state_of(component)
            _count(states, component.name, state)
            if (first := self._first.get(component.uid)) is not None:
                first.state = state
            if state == WAITING:
                for dependency in component.dependencies:
                    if is_pending(dependency):
                        edge = (getattr(dependency, "name", ""), component.name)
                        waiting[edge] = waiting.get(edge, 0) + 1
        tasks: list[TaskNode] = []
        if self._number <= MOST_TASKS:
            tasks = [
                TaskNode(uid, first.name, first.state, first.uses)
                for uid, first in self._first.copy().items()
            ]
        return Graph(
            [Node(name, self._kinds.get(name, ""), counts) for name, counts in states.items()],
            [Edge(*edge, n, waiting.get(edge, 0)) for edge, n in self._edges.copy().items()],
            tasks,
        )


class _First:
    """One of the first components: its name, its state, and the uids of those that it uses."""

    __slots__ = ("name", "state", "uses")

    def __init__(self, name: str, uses: tuple[str, ...]) -> None:
        self.name = name
        self.uses = uses
        self.state = WAITING


def _state_of(component: Component) -> str:
    stage = component.stage
    if stage in ENDS:
        return ENDS[stage]
    if stage <= Stage.PAUSING:
        return WAITING if component.waiting else TaskStates.PENDING
    return TaskStates.RUNNING if component.state == "RUNNING" else TaskStates.PENDING


def _count(states: dict[str, dict[str, int]], name: str, state: str, number: int = 1) -> None:
    of_name = states.setdefault(name, {})
    of_name[state] = of_name.get(state, 0) + number


def stock_graph(flow: Any) -> Graph:
    """Return the graph of a stock engine, from its register of components."""
    components: dict[str, Any] = dict(flow.components)
    states: dict[str, dict[str, int]] = {}
    kinds: dict[str, str] = {}
    edges: dict[tuple[str, str], int] = {}
    waiting: dict[tuple[str, str], int] = {}
    tasks: list[TaskNode] = []
    for uid, component in components.items():
        description: Mapping[str, Any] = component["description"]
        name = str(description["name"])
        used = [str(d["uid"]) for d in flow.dependencies.get(uid, ()) if d["uid"] in components]
        missing = [u for u in used if not components[u]["future"].done()]
        state = WAITING if missing else _state_of_future(component["future"], uid in flow.running)
        kinds.setdefault(name, str(component["type"]))
        _count(states, name, state)
        for other in used:
            edge = (str(components[other]["description"]["name"]), name)
            edges[edge] = edges.get(edge, 0) + 1
            waiting[edge] = waiting.get(edge, 0) + (other in missing)
        if len(components) <= MOST_TASKS:
            tasks.append(TaskNode(uid, name, state, used))
    return Graph(
        [Node(name, kinds[name], counts) for name, counts in states.items()],
        [Edge(*edge, number, waiting[edge]) for edge, number in edges.items()],
        tasks,
    )


def _state_of_future(future: asyncio.Future[Any], is_running: bool) -> str:
    if not future.done():
        return TaskStates.RUNNING if is_running else TaskStates.PENDING
    if future.cancelled():
        return TaskStates.CANCELED
    # Not `exception()`, after which asyncio would not report that nobody retrieved it.
    return TaskStates.DONE if future._exception is None else TaskStates.FAILED
