"""The event-driven engine against AsyncFlow's stock engine, in one run, on the same backends.

Wall time and CPU time of the process, each the median of some rounds; engines take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import WorkflowEngine, extend
from rhapsody.backends import BaseBackend, DragonVllmInferenceBackend, NoopExecutionBackend, Work
from rhapsody.backends.service import service_loop

Program = Callable[[Any], Awaitable[Any]]

STEP_SECONDS = 0.02
FOLDER = tempfile.TemporaryDirectory(prefix="rhapsody-benchmark-")


class SleepingBackend(BaseBackend):
    """Every task takes 20 ms and nothing else."""

    async def execute(self, work: Work) -> dict[str, Any]:
        await asyncio.sleep(STEP_SECONDS)
        return {"return_value": None}


class HoldingBackend(BaseBackend):
    """Tasks end at once, but for those called with `held=True`, which wait for `let_go`."""

    def __init__(self) -> None:
        super().__init__("holding")
        self._gate = asyncio.Event()

    def let_go(self) -> None:
        service_loop().call(self._gate.set)

    async def execute(self, work: Work) -> dict[str, Any]:
        if work.task["kwargs"].get("held"):
            await self._gate.wait()
        return {"return_value": None}


def task_of(flow: Any) -> Any:
    @flow.function_task
    async def task(*before: Any) -> None:
        return None

    return task


async def chain(flow: Any, length: int) -> None:
    task = task_of(flow)
    last = task()
    for _ in range(length - 1):
        last = task(last)
    await last


async def diamonds(flow: Any, number: int) -> None:
    task = task_of(flow)

    def diamond() -> Any:
        top = task()
        left, right = task(top), task(top)
        return task(left, right)

    await asyncio.gather(*(diamond() for _ in range(number)))


async def independent(flow: Any, number: int) -> None:
    task = task_of(flow)
    await asyncio.gather(*(task() for _ in range(number)))


async def pending(flow: Any, number: int, seconds: float) -> None:
    """A thousand tasks a second come and go while many others run on."""

    @flow.function_task
    async def task(held: bool = False) -> None:
        return None

    held = [task(held=True) for _ in range(number)]
    passing = []
    for _ in range(int(seconds * 100)):
        passing += [task() for _ in range(10)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*passing)
    flow.backend.let_go()
    await asyncio.gather(*held)


async def time_engine(engine: Any, backend: Any, program: Program) -> tuple[float, float]:
    """Return wall and CPU seconds of one program on one engine."""
    flow = await engine.create(backend=backend, work_dir=FOLDER.name)
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        await program(flow)
        return time.perf_counter() - wall, time.process_time() - cpu
    finally:
        await flow.shutdown()


async def compare(make_backend: Callable[[], Any], program: Program, rounds: int) -> list[float]:
    """Return the medians of ours and stock's: wall, CPU, wall, CPU."""
    ours, stock = [], []
    for _ in range(rounds):
        ours.append(await time_engine(WorkflowEngine, make_backend(), program))
        stock.append(await time_engine(StockEngine, make_backend(), program))
    return [
        statistics.median(column)
        for column in (*zip(*ours, strict=True), *zip(*stock, strict=True))
    ]


async def direct(number: int) -> float:
    """Return the seconds that the no-op backend takes for bare descriptions of tasks."""
    backend = NoopExecutionBackend()
    left, done = number, asyncio.Event()

    def count_down(task: Any, state: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    backend.register_callback(count_down)
    tasks = [
        {"uid": f"task.{i}", "function": print, "args": (), "kwargs": {}} for i in range(number)
    ]
    since = time.perf_counter()
    await backend.submit_tasks(tasks)
    await done.wait()
    return time.perf_counter() - since


async def ai_calls(engine: Any, calls: int) -> tuple[float, float]:
    """Return the seconds of AI calls in a row, in a workflow and straight to the backend."""
    backend = await DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    flow = extend(await engine.create(backend=backend, work_dir=FOLDER.name))

    @flow.ai_task(max_tokens=1600, min_tokens=1600, ignore_eos=True)
    async def ask(before: str) -> str:
        return f"Go on: {before[-40:]}"

    async def in_flow() -> float:
        since = time.perf_counter()
        answer: Any = "once"
        for _ in range(calls):
            answer = ask(answer)
        await answer
        return time.perf_counter() - since

    async def alone() -> float:
        since = time.perf_counter()
        text = "once"
        for _ in range(calls):
            prompt = f"Go on: {text[-40:]}"
            [text] = await backend.generate(
                [prompt], max_tokens=1600, min_tokens=1600, ignore_eos=True
            )
        return time.perf_counter() - since

    try:
        # In turns: the server's process gets faster while it is young.
        pairs = [(await in_flow(), await alone()) for _ in range(6)][1:]
        flowing, bare = zip(*pairs, strict=True)
        return statistics.median(flowing), statistics.median(bare)
    finally:
        await flow.shutdown()


async def measure() -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, ratio, how it was taken."""
    rows = []

    def row(what: str, figures: list[float]) -> None:
        wall, cpu, stock_wall, stock_cpu = figures
        rows.append(
            (
                what,
                f"wall {wall / stock_wall:.3f}, CPU {cpu / stock_cpu:.2f}",
                f"{wall:.3f} s against {stock_wall:.3f} s",
            )
        )

    def noop() -> Any:
        return NoopExecutionBackend()

    def sleeping() -> Any:
        return SleepingBackend("sleeping")

    row("chain of 200 no-op tasks", await compare(noop, lambda f: chain(f, 200), 3))
    figures = await compare(sleeping, lambda f: chain(f, 20), 1)
    row("chain of 20 tasks of 20 ms", figures)
    rows.append(("... against the ideal", f"{figures[0] / (20 * STEP_SECONDS):.2f}", "ideal 0.4 s"))
    row("1,000 diamonds, no-op", await compare(noop, lambda f: diamonds(f, 1000), 5))
    figures = await compare(noop, lambda f: independent(f, 20_000), 5)
    row("20,000 independent no-op tasks", figures)
    bare = statistics.median([await direct(20_000) for _ in range(5)])
    rows.append(
        ("... against the bare backend", f"wall {figures[0] / bare:.1f}", f"{bare:.3f} s bare")
    )
    figures = await compare(HoldingBackend, lambda f: pending(f, 5000, 3), 1)
    row("5,000 pending while 1,000 a second complete", figures)
    for name, engine in (("ours", WorkflowEngine), ("stock", StockEngine)):
        in_flow, alone = await ai_calls(engine, 5)
        rows.append(
            (
                f"5 AI calls in a row, {name} engine, against the backend alone",
                f"wall {in_flow / alone:.2f}",
                f"{in_flow:.3f} s against {alone:.3f} s",
            )
        )
    return rows


def main() -> None:
    """Print the table."""
    print("| workload | ratio of ours to stock | taken |\n| --- | --- | --- |")
    for cells in asyncio.run(measure()):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
