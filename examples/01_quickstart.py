"""Quickstart: functions, executables and AI tasks, first as one AsyncFlow graph, then in a Session.

The graph simulates a damped spring for six amounts of damping. For each of them a function runs the
simulation, an executable (awk) computes the mean energy from the function's file, and the model
writes a summary. At the end one function decides what to simulate next. Then a Session runs
functions, executables and five thousand prompts, and shows their progress. It prints the address of
a live page, and writes the report of the session.

Needs only Rhapsody: the answers come from the embedded model, which needs no GPU and no download.
It is not a real model. Takes 4 seconds.

    python examples/01_quickstart.py
"""

import asyncio
import shlex
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

DAMPINGS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
PROMPTS = 5000
FUNCTIONS = 200
EXECUTABLES = 40
REPORT = Path("quickstart-report.html").absolute()

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def swing(damping: float, steps: int = 1000, step: float = 0.02) -> list[float]:
    """Simulate a damped spring and return its energy after every step."""
    position, speed, energies = 1.0, 0.0, []
    for _ in range(steps):
        speed -= (position + damping * speed) * step
        position += speed * step
        energies.append((position**2 + speed**2) / 2)
    return energies


def energy_left(damping: float) -> float:
    return swing(damping)[-1]


def record(damping: float, file: Path) -> Path:
    file.write_text("\n".join(map(str, swing(damping))))
    return file


# -- 1. one graph ---------------------------------------------------------------------------------


def make_graph(flow: Any, folder: Path) -> dict[str, list[Any]]:
    """Build the graph, which starts to run at once, and return the future of every task."""

    @flow.function_task
    async def simulate(damping: float) -> str:
        return str(record(damping, folder / f"energies-{damping}.txt"))

    @flow.executable_task
    async def mean_energy(file: str) -> str:
        return f"awk '{{sum += $1}} END {{printf \"%.4f\", sum / NR}}' {shlex.quote(file)}"

    @flow.ai_task(max_tokens=24)
    async def summarise(damping: float, mean: str) -> str:
        # `mean` is a value, not a future: this function runs after the executable has ended.
        return f"Damping {damping}, mean energy {mean}. Summarise the simulation in one sentence."

    @flow.function_task
    async def decide(*means: str) -> str:
        near = min(zip(DAMPINGS, means, strict=True), key=lambda run: abs(float(run[1]) - 0.1))
        return f"look more closely around damping {near[0]}, where the mean energy is {near[1]}"

    graph: dict[str, list[Any]] = {"simulate": [], "mean energy": [], "summarise": []}
    for damping in DAMPINGS:
        file = simulate(damping)
        mean = mean_energy(file)
        graph["simulate"].append(file)
        graph["mean energy"].append(mean)
        graph["summarise"].append(summarise(damping, mean))
    graph["decide"] = [decide(*graph["mean energy"])]
    return graph


async def watch(graph: dict[str, list[Any]]) -> None:
    """Show the graph's tasks until all have ended: live on a terminal, otherwise once."""
    pending = {future for futures in graph.values() for future in futures}
    if not console.is_terminal:
        await asyncio.wait(pending)
        console.print(graph_table(graph))
        return
    with Live(graph_table(graph), console=console, auto_refresh=False) as live:
        while pending:
            _, pending = await asyncio.wait(pending, timeout=0.1)
            live.update(graph_table(graph), refresh=True)


def graph_table(graph: dict[str, list[Any]]) -> Table:
    table = Table("step", "kind", box=box.SIMPLE)
    for column in ("waiting or running", "done", "failed"):
        table.add_column(column, justify="right")
    kinds = ("function", "executable", "AI task", "function")
    for (step, futures), kind in zip(graph.items(), kinds, strict=True):
        ended = [future for future in futures if future.done()]
        failed = sum(future.cancelled() or future.exception() is not None for future in ended)
        figures = (len(futures) - len(ended), len(ended) - failed, failed)
        table.add_row(step, kind, *map(str, figures))
    return table


async def part_one(compute: Any, model: Any) -> None:
    console.rule("1. One AsyncFlow graph", align="left")
    say(f"{len(DAMPINGS)} times simulate -> mean energy -> summarise, side by side; then decide:")
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=[compute, model], work_dir=folder)
        begin = time.perf_counter()
        graph = make_graph(flow, Path(folder))
        await watch(graph)
        seconds = time.perf_counter() - begin
        figures = model.get_statistics()
        await flow.shutdown()

    for damping, mean, summary in zip(
        DAMPINGS, graph["mean energy"], graph["summarise"], strict=True
    ):
        say(f"  damping {damping:<4}  mean energy {mean.result()}")
        answer(summary.result())
    say(f"Decision: {graph['decide'][0].result()}.")
    tasks = sum(map(len, graph.values()))
    say(f"{tasks} tasks in {seconds:.1f} s; the prompts left in {batches(figures)}.\n")


# -- 2. a session ---------------------------------------------------------------------------------


def make_tasks() -> list[Any]:
    words = ("energy", "the capital of France", "an experiment", "a batch of prompts", "a joke")
    tasks: list[Any] = [
        AITask(f"Question {i}: what is known about {words[i % len(words)]}?", max_tokens=40)
        for i in range(PROMPTS)
    ]
    tasks += [ComputeTask(function=energy_left, args=[0.001 * i]) for i in range(FUNCTIONS)]
    tasks += [
        ComputeTask(executable="expr", arguments=[str(i + 1), "*", "2"]) for i in range(EXECUTABLES)
    ]
    return tasks


async def part_two(compute: Any, model: Any) -> None:
    console.rule("2. The same kind of mix in a Session", align="left")
    say(f"{PROMPTS} prompts, {FUNCTIONS} functions and {EXECUTABLES} executables at once:\n")
    # The engine shut its backends down. They start again for the session.
    async with Session([await compute, await model]) as session:
        page = session.serve_page(title="Quickstart")
        say(f"Live page, until the tasks have ended:\n  {page.url}\n")
        tasks = make_tasks()
        begin = time.perf_counter()
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, progress=True)
        seconds = time.perf_counter() - begin
        figures = model.get_statistics()
        session.report(REPORT, title="Quickstart")

    states = Counter(task.state for task in tasks)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    say(f"\nTasks: {counted}, in {seconds:.1f} s from the first to the last.")
    say(f"Prompts: {PROMPTS / seconds:.0f} per second, in {batches(figures)}.")
    say("The first answers:")
    for task in tasks[:3]:
        say(f"  {task.prompt}")
        answer(task.response)
    function, executable = tasks[PROMPTS + 1], tasks[-1]
    say(f"  energy_left({function.args[0]})  {function.return_value:.4f}")
    say(f"  expr {' '.join(executable.arguments)}  {executable.stdout.strip()}")


# -- both -----------------------------------------------------------------------------------------


def say(text: str) -> None:
    console.print(text)


def answer(text: str) -> None:
    console.print(Text(f"      {textwrap.shorten(text, 72, placeholder=' ...')}", style="cyan"))


def batches(figures: dict[str, Any]) -> str:
    number = figures["batches"]
    size = f"{figures['mean_batch_size']:.0f} prompts"
    return f"one batch of {size}" if number == 1 else f"{number} batches of {size} on average"


async def main() -> None:
    say("Rhapsody: functions, executables and AI tasks in one program.")
    say(
        "The answers come from the embedded model, which is [bold]not a real model[/bold]:\n"
        "it strings words together, and needs no GPU and no download.\n"
    )
    compute = ConcurrentExecutionBackend()
    model = DragonVllmInferenceBackend(
        config_file=None,
        model_name="embedded",
        engine="embedded",
        launcher="local",
        use_service=False,
    )
    await part_one(compute, model)
    await part_two(compute, model)
    say("\nAll backends are shut down. Open the report of the session in a browser:")
    say(f"  {REPORT.as_uri()}")
    say("The next examples are shorter:")
    say(f"  {sys.executable} examples/02_session_mixed.py")


if __name__ == "__main__":
    asyncio.run(main())
