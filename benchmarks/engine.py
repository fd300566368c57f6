"""The event-driven engine compared with AsyncFlow's stock engine, on the same backends.

Measures wall time and CPU time of the process, with the engines alternately.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import WorkflowEngine, extend
from benchmarks.figures import Figure
from benchmarks.timing import Owner, functions, seconds_of
from rhapsody.backends import BaseBackend, DragonVllmInferenceBackend, NoopExecutionBackend, Work
from rhapsody.backends.core.service_loop import service_loop

Program = Callable[[Any], Awaitable[Any]]

STEP_SECONDS = 0.02
FOLDER = tempfile.TemporaryDirectory(prefix="rhapsody-benchmark-")


class SleepingBackend(BaseBackend):
    """Sleeps 20 ms for every task."""

    async def execute(self, work: Work) -> dict[str, Any]:
        await asyncio.sleep(STEP_SECONDS)
        return {"return_value": None}


class HoldingBackend(BaseBackend):
    """Ends tasks at once, except those called with `held=True`, which wait for `release`."""

    def __init__(self) -> None:
        super().__init__("holding")
        self._gate = asyncio.Event()

    def release(self) -> None:
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
    """Run a thousand short tasks a second while many others stay active."""

    @flow.function_task
    async def task(held: bool = False) -> None:
        return None

    held = [task(held=True) for _ in range(number)]
    passing = []
    for _ in range(int(seconds * 100)):
        passing += [task() for _ in range(10)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*passing)
    flow.backend.release()
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


@dataclass
class Comparison:
    """Wall and CPU seconds of both engines, round by round."""

    what: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    stock_wall: list[float] = field(default_factory=list)
    stock_cpu: list[float] = field(default_factory=list)

    def figures(self, wall: float | None = None, cpu: float | None = None) -> list[Figure]:
        """Return both ratios, with their aims as upper bounds."""
        over = "AsyncFlow's engine"
        return [
            Figure(
                what=f"{self.what}: wall time",
                over=over,
                ours=self.wall,
                base=self.stock_wall,
                at_most=wall,
            ),
            Figure(
                what=f"{self.what}: CPU time",
                over=over,
                ours=self.cpu,
                base=self.stock_cpu,
                at_most=cpu,
            ),
        ]


async def compare(
    what: str, make_backend: Callable[[], Any], program: Program, rounds: int
) -> Comparison:
    found = Comparison(what)
    for _ in range(rounds):
        wall, cpu = await time_engine(WorkflowEngine, make_backend(), program)
        stock_wall, stock_cpu = await time_engine(StockEngine, make_backend(), program)
        found.wall.append(wall)
        found.cpu.append(cpu)
        found.stock_wall.append(stock_wall)
        found.stock_cpu.append(stock_cpu)
    return found


async def direct(number: int) -> float:
    """Return the seconds that the no-op backend alone takes for the same tasks."""
    async with NoopExecutionBackend() as backend:
        return await seconds_of(Owner(backend).run(functions(number, print)))


async def ai_calls(engine: Any, calls: int) -> tuple[list[float], list[float]]:
    """Return the seconds of consecutive AI calls, in a workflow and directly on the backend."""
    backend = await DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    flow = extend(await engine.create(backend=backend, work_dir=FOLDER.name))

    @flow.ai_task(max_tokens=1600, min_tokens=1600, ignore_eos=True)
    async def ask(before: str) -> str:
        return f"Go on: {before[-40:]}"

    async def in_flow() -> None:
        answer: Any = "once"
        for _ in range(calls):
            answer = ask(answer)
        await answer

    async def alone() -> None:
        text = "once"
        for _ in range(calls):
            prompt = f"Go on: {text[-40:]}"
            [text] = await backend.generate(
                [prompt], max_tokens=1600, min_tokens=1600, ignore_eos=True
            )

    try:
        # The first round is a warm-up: the server's process is slower at first.
        pairs = [(await seconds_of(in_flow()), await seconds_of(alone())) for _ in range(6)][1:]
        flowing, bare = zip(*pairs, strict=True)
        return list(flowing), list(bare)
    finally:
        await flow.shutdown()


async def measure() -> list[Figure]:
    """Return figures of workflows and of AI calls."""

    def sleeping() -> Any:
        return SleepingBackend("sleeping")

    noop = NoopExecutionBackend
    figures = (
        await compare("a chain of 200 no-op tasks", noop, lambda f: chain(f, 200), 3)
    ).figures(wall=0.02)
    found = await compare("a chain of 20 tasks of 20 ms", sleeping, lambda f: chain(f, 20), 2)
    ideal = [20 * STEP_SECONDS] * len(found.wall)
    figures += found.figures()
    figures.append(
        Figure(what=found.what, over="the ideal, 0.4 s", ours=found.wall, base=ideal, at_most=1.1)
    )
    found = await compare("1,000 diamonds, no-op", noop, lambda f: diamonds(f, 1000), 5)
    figures += found.figures(cpu=0.5)
    found = await compare("20,000 no-op tasks", noop, lambda f: independent(f, 20_000), 5)
    figures += found.figures(cpu=0.5)
    bare = [await direct(20_000) for _ in found.wall]
    figures.append(
        Figure(what=found.what, over="the backend alone", ours=found.wall, base=bare, at_most=5)
    )
    found = await compare(
        "1,000 short tasks a second beside 5,000 active ones",
        HoldingBackend,
        lambda f: pending(f, 5000, 3),
        1,
    )
    figures += found.figures(cpu=0.5)
    for name, engine in (("Rhapsody's", WorkflowEngine), ("AsyncFlow's", StockEngine)):
        flowing, bare = await ai_calls(engine, 5)
        figures.append(
            Figure(
                what=f"5 consecutive AI calls on {name} engine",
                over="the backend alone",
                ours=flowing,
                base=bare,
                at_most=1.2 if engine is WorkflowEngine else None,
            )
        )
    return figures
