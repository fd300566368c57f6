"""The journal of an engine against a model: random graphs, interruptions and edits."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow_ext import WorkflowEngine
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow

FUNCTIONS = 3


class Node(NamedTuple):
    """One call of a program: a function, an argument, and the earlier calls it depends on."""

    function: int
    argument: int
    dependencies: tuple[int, ...]


class Run(NamedTuple):
    """One run of a program.

    Attributes:
        versions: The version of each function.
        most: How many calls run until the program is interrupted.
    """

    versions: tuple[int, ...]
    most: int


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 10))):
        earlier = st.integers(0, max(0, number - 1))
        dependencies = draw(st.lists(earlier, max_size=min(3, number), unique=True))
        function, argument = draw(st.integers(0, FUNCTIONS - 1)), draw(st.integers(0, 1))
        nodes.append(Node(function, argument, tuple(dependencies)))
    return nodes


versions = st.tuples(*[st.integers(1, 2)] * FUNCTIONS)
runs = st.lists(st.builds(Run, versions, st.integers(0, 12)), min_size=1, max_size=4)


def model_keys(graph: list[Node], run: Run) -> list[Any]:
    """Return what must be equal for the result of a call to be used again."""
    keys: list[Any] = []
    seen: Counter[Any] = Counter()
    for node in graph:
        depends = tuple(keys[number] for number in node.dependencies)
        key = (node.function, run.versions[node.function], node.argument, depends)
        seen[key] += 1
        keys.append((*key, seen[key]))
    return keys


def value_of(function: int, version: int, argument: int, values: tuple[int, ...]) -> int:
    return hash((function, version, argument, values))


async def execute(path: Path, graph: list[Node], run: Run) -> tuple[set[int], list[Any]]:
    """Run the program; return which calls ran, and the results, None for unfinished calls."""
    ran: list[str] = []
    interrupted = asyncio.Event()

    def on_task(task: dict[str, Any]) -> None:
        if len(ran) == run.most:
            interrupted.set()
            return  # it never ends
        ran.append(task["uid"])
        backend.done(task, task["function"](*task["args"]))

    backend = ScriptedBackend(on_task=on_task)
    async with WorkflowEngine.create(backend=backend, journal=path) as flow:
        functions = []
        for number in range(FUNCTIONS):
            version = run.versions[number]

            def call(
                argument: int, *values: int, number: int = number, version: int = version
            ) -> int:
                return value_of(number, version, argument, values)

            call.__name__ = call.__qualname__ = f"call_{number}"
            functions.append(flow.function_task(call, version=str(version)))
        tasks: list[Any] = []
        for node in graph:
            depends = [tasks[number] for number in node.dependencies]
            tasks.append(functions[node.function](node.argument, *depends))
        waiting = [
            asyncio.ensure_future(asyncio.wait(tasks)),
            asyncio.ensure_future(interrupted.wait()),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        uids = {task.uid: number for number, task in enumerate(tasks)}
        results = [task.result() if task.done() else None for task in tasks]
    return {uids[uid] for uid in ran}, results


@settings(max_examples=25, deadline=None)
@given(graph=graphs(), program_runs=runs)
def test_what_runs_is_what_the_model_says(graph: list[Node], program_runs: list[Run]) -> None:
    last = program_runs[-1]._replace(most=1000)
    done: set[Any] = set()
    with tempfile.TemporaryDirectory(prefix="journal-model-") as folder:
        for run in [*program_runs, last, last]:
            keys = model_keys(graph, run)
            ran, results = asyncio.run(execute(Path(folder) / "run.journal", graph, run))
            missing = {number for number, key in enumerate(keys) if key not in done}
            assert ran <= missing
            assert len(ran) <= run.most
            if run.most >= len(missing):
                assert ran == missing
                values: list[int] = []
                for node in graph:
                    depends = tuple(values[number] for number in node.dependencies)
                    version = run.versions[node.function]
                    values.append(value_of(node.function, version, node.argument, depends))
                assert results == values
            done |= {keys[number] for number in ran}
