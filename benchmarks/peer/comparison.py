"""Compares both packages: their interpreters run `program.py` alternately."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.figures import Figure, Problem
from benchmarks.machine import missing
from benchmarks.peer.environment import PEER, peer_python
from benchmarks.sides import Side, Workload, side

PROGRAM = str(Path(__file__).with_name("program.py"))


# The peer may not finish the last one under Dragon, and cannot be used after that.
WORKS = {
    "noop": [Workload("creating", 10_000, 5), Workload("function", 10_000, 5)],
    "concurrent": [Workload("function", 5_000, 5), Workload("executable", 300, 5)],
    "dask": [Workload("function", 2_000, 3), Workload("executable", 200, 3)],
    "dragon": [
        Workload("function", 100, 2),
        Workload("executable", 20, 2),
        Workload("function", 1_000, 1, 40),
    ],
}
NEEDS = {"dask": "Dask", "dragon": "Dragon"}


async def compare(backend: str, work: Workload, ours: Side, theirs: Side) -> Figure:
    """Run a workload on both packages, alternately."""
    seconds: list[float] = []
    base: list[float] = []
    done = work.number
    for _ in range(work.rounds):
        seconds.append((await ours.run(work))[0])
        taken, done = await theirs.run(work)
        base.append(taken)
        if done < work.number:
            break
    return Figure(
        what=f"{backend} backend: {work}",
        over=PEER,
        ours=seconds,
        base=base,
        base_stopped=done < work.number,
        note="" if done == work.number else f"{PEER} had finished {done:,} when stopped",
    )


async def measure() -> list[Figure | Problem]:
    """Return figures of every installed backend that both packages have."""
    python = await asyncio.to_thread(peer_python)
    found: list[Figure | Problem] = []
    for backend, works in WORKS.items():
        if reason := missing(NEEDS.get(backend)):
            found.append(Problem(what=f"{backend} backend", reason=reason))
            continue
        try:
            async with (
                side(sys.executable, PROGRAM, backend) as ours,
                side(python, PROGRAM, backend) as theirs,
            ):
                for one in (ours, theirs):  # warm-up: import everything
                    await one.run(Workload("function", 2, 1))
                for work in works:  # one by one: keeps figures found before an error
                    found.append(await compare(backend, work, ours, theirs))  # noqa: PERF401
        except RuntimeError as error:
            found.append(Problem(what=f"{backend} backend", reason=str(error)))
    return found
