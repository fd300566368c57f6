"""Curves of the batching parameters and of the number of workers.

Prompts arrive at random times (a Poisson process), at rates below and above the capacity of a
replica. The replica keeps running while the parameters change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Chart, Line, Panel, Problem
from benchmarks.machine import missing
from benchmarks.timing import Owner, functions, seconds_of
from benchmarks.tiny_vllm import ENVIRONMENT, tiny_vllm
from benchmarks.workers import KINDS, WORKER_NUMBERS, nothing, workers_chart
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop

SLOTS = 16
"""Concurrent prompts of the replica: few, so that two cores can keep it busy."""
SAMPLING: dict[str, Any] = {"max_tokens": 32, "ignore_eos": True, "temperature": 0}
LOADS = (0.5, 0.9, 1.3)
"""Rate of arriving prompts, divided by the capacity of the replica."""
SECONDS = 4.0
WAITS = (0, 20, 100, 500, 2000)
SIZES = (1, 8, 32, 128, 1024)
DEFAULT_WAIT, DEFAULT_SIZE = 500, 1024


@dataclass(frozen=True)
class Outcome:
    """Rate of responses per second, and latencies in milliseconds from arrival to response."""

    rate: float
    p50: float
    p99: float


class Bench:
    """A backend whose batching parameters change."""

    def __init__(self, backend: DragonVllmInferenceBackend) -> None:
        self._backend = backend

    async def ask(self, number: int) -> None:
        await self._backend.generate(f"What is {number} and what is it good for?", **SAMPLING)

    async def set(self, max_batch_size: int, max_batch_wait_ms: float) -> None:
        """Change both parameters while no prompt is active."""
        service = self._backend._service
        assert service is not None
        batcher = service.pool._ordinary

        async def change() -> None:
            batcher._max_batch_size = max_batch_size
            batcher._max_wait = max_batch_wait_ms / 1000

        await service_loop().run(change())

    async def at_once(self, number: int) -> float:
        """Return the seconds that a number of concurrent prompts take."""
        return await seconds_of(asyncio.gather(*(self.ask(i) for i in range(number))))

    async def capacity(self) -> float:
        """Return the prompts per second that the replica serves when all wait."""
        number = 16 * SLOTS
        return number / statistics.median([await self.at_once(number) for _ in range(3)])

    async def offered(self, rate: float) -> Outcome:
        """Submit prompts at a rate for some seconds, and wait for all responses."""
        chance, moments = random.Random(1), [0.0]
        while moments[-1] < SECONDS:
            moments.append(moments[-1] + chance.expovariate(rate))

        async def submit(number: int, moment: float) -> float:
            await asyncio.sleep(moment)
            return await seconds_of(self.ask(number))

        latencies: list[float] = []

        async def submit_all() -> None:
            latencies.extend(
                await asyncio.gather(*(submit(i, moment) for i, moment in enumerate(moments)))
            )

        seconds = await seconds_of(submit_all())
        percentiles = statistics.quantiles(latencies, n=100)
        return Outcome(len(moments) / seconds, 1000 * percentiles[49], 1000 * percentiles[98])


async def curve(
    bench: Bench, rates: Sequence[float], settings: Sequence[tuple[int, float]]
) -> dict[float, list[Outcome]]:
    """Return the outcomes by load for all settings of (max_batch_size, max_batch_wait_ms)."""
    found: dict[float, list[Outcome]] = {load: [] for load in LOADS}
    for size, wait in settings:
        await bench.set(size, wait)
        for load, rate in zip(LOADS, rates, strict=True):
            found[load].append(await bench.offered(rate))
    await bench.set(DEFAULT_SIZE, DEFAULT_WAIT)
    return found


def parameter_chart(
    name: str,
    title: str,
    parameter: str,
    values: Sequence[float],
    found: dict[float, list[Outcome]],
) -> Chart:
    """Draw rate and latencies over the values of a parameter, with a line per load."""

    def panel(panel_title: str, label: str, pick: Callable[[Outcome], float], log: bool) -> Panel:
        lines = [
            Line(
                label=f"load {load:g}",
                x=list(values),
                y=[pick(outcome) for outcome in outcomes],
            )
            for load, outcomes in found.items()
        ]
        return Panel(title=panel_title, x_label=parameter, y_label=label, lines=lines, log_y=log)

    return Chart(
        name=name,
        title=title,
        panels=[
            panel("Throughput", "responses per second", lambda outcome: outcome.rate, False),
            panel("Latency, median", "ms", lambda outcome: outcome.p50, True),
            panel("Latency, 99th percentile", "ms", lambda outcome: outcome.p99, True),
        ],
    )


async def engine_charts(name: str, backend: DragonVllmInferenceBackend) -> list[Chart]:
    """Return the curves of both parameters on one engine."""
    bench = Bench(backend)
    await bench.at_once(4 * SLOTS)
    capacity = await bench.capacity()
    rates = [load * capacity for load in LOADS]
    about = f"{name}, {SLOTS} concurrent prompts, capacity {capacity:.0f} prompts/s"
    waits = await curve(bench, rates, [(DEFAULT_SIZE, wait) for wait in WAITS])
    sizes = await curve(bench, rates, [(size, DEFAULT_WAIT) for size in SIZES])
    return [
        parameter_chart(f"tuning-wait-{name}", about, "max_batch_wait_ms", WAITS, waits),
        parameter_chart(f"tuning-size-{name}", about, "max_batch_size", SIZES, sizes),
    ]


def embedded(folder: Path, slots: int) -> DragonVllmInferenceBackend:
    """Return a backend on the embedded model, slowed to 2 ms per token like a real model."""
    config = folder / f"embedded-{slots}.yaml"
    config.write_text(f"max-num-seqs: {slots}\ntoken-delay-ms: 2\n")
    return DragonVllmInferenceBackend(
        config, "embedded", engine="embedded", launcher="local", use_service=False
    )


def vllm(folder: Path, slots: int) -> DragonVllmInferenceBackend:
    engine = {"enforce_eager": True, "max_num_seqs": slots, "max_model_len": 1024}
    return tiny_vllm(folder, engine, use_service=False)


async def concurrent_workers() -> Chart:
    """Run no-op, computing and waiting functions on an increasing number of threads."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in WORKER_NUMBERS:
        with ThreadPoolExecutor(number) as pool:
            async with ConcurrentExecutionBackend(pool) as backend:
                owner = Owner(backend)
                await owner.run(functions(500, nothing))
                for kind, (function, calls) in KINDS.items():
                    seconds = await seconds_of(owner.run(functions(calls, function)))
                    rates[kind].append(calls / seconds)
    title = "ConcurrentExecutionBackend with threads"
    return workers_chart("concurrent-workers", title, WORKER_NUMBERS, rates)


async def measure() -> list[Chart | Problem]:
    """Return all curves."""
    os.environ.update(ENVIRONMENT)
    makers: dict[str, Callable[[Path, int], Any]] = {"embedded": embedded, "vllm": vllm}
    found: list[Chart | Problem] = [await concurrent_workers()]
    if reason := missing("vLLM"):
        del makers["vllm"]
        found.append(Problem(what="the curves of vLLM", reason=reason))
    for name, make in makers.items():
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rhapsody-"))
            async with make(Path(folder), SLOTS) as backend:
                found += await engine_charts(name, backend)
    return found
