"""Compares Rhapsody with other systems: their programs run the same workloads alternately."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.environments import python_with
from benchmarks.figures import Figure, Problem
from benchmarks.processes import ROOT
from benchmarks.sides import Side, Workload, side

__all__ = ["measure"]

PROGRAM = str(Path(__file__).with_name("program.py"))

OURS = "processes"
"""The side that is compared with the others: Rhapsody's engine on its process pool."""

OTHERS = {
    "executor": "ProcessPoolExecutor",
    "ray": "Ray",
    "dask": "Dask",
    "parsl": "Parsl",
}

AIMS = {
    ("executor", "function"): 1.0,
    ("executor", "call"): 2.5,
    ("ray", "function"): 0.125,
    ("ray", "array"): 1.0,
}
"""The largest ratios of the times that the project sets itself."""

VERSIONS = {"ray": "2.60.0", "parsl": "2026.10.26"}

FUNCTIONS = Workload("function", 3000, 3)
CALLS = Workload("call", 200, 3)
CHAIN = Workload("chain", 100, 3)
ARRAY = Workload("array", 3, 3, 120)
WORKLOADS = {
    FUNCTIONS: f"{FUNCTIONS.number:,} no-op functions at once",
    CALLS: "one no-op function after another",
    CHAIN: f"a chain of {CHAIN.number} no-op functions",
    ARRAY: f"100 MB through four functions, {ARRAY.number} times",
}


async def measure() -> list[Figure | Problem]:
    """Return figures of every system that can be installed."""
    python = await asyncio.to_thread(python_with, ROOT / ".venv-systems", requirements())
    found: list[Figure | Problem] = []
    async with side(sys.executable, PROGRAM, OURS) as ours:
        for system, name in OTHERS.items():
            async with AsyncExitStack() as stack:
                try:
                    theirs = await stack.enter_async_context(side(python, PROGRAM, system))
                    found += await compare(system, ours, theirs)
                except RuntimeError as error:
                    found.append(Problem(what=name, reason=str(error)))
    return found


def requirements() -> list[str]:
    """Return the other systems, with the installed versions of Dask and NumPy."""
    versions = {name: importlib.metadata.version(name) for name in ("distributed", "numpy")}
    return [f"{name}=={version}" for name, version in {**VERSIONS, **versions}.items()]


async def compare(system: str, ours: Side, theirs: Side) -> list[Figure]:
    """Run all workloads on both sides, alternately."""
    for one in (ours, theirs):  # warm-up: the workers start and import everything
        for workload in WORKLOADS:
            await one.run(Workload(workload.kind, min(workload.number, 10), 1, workload.limit))
    figures = []
    for workload, what in WORKLOADS.items():
        pairs = [
            ((await ours.run(workload))[0], (await theirs.run(workload))[0])
            for _ in range(workload.rounds)
        ]
        seconds, base = zip(*pairs, strict=True)
        figures.append(
            Figure(
                what=what,
                over=OTHERS[system],
                ours=seconds,
                base=base,
                at_most=AIMS.get((system, workload.kind)),
            )
        )
    return figures
