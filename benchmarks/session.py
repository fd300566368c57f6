"""What a Session adds to the bare no-op backend, and what a task costs beside a plain dict."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import Owner, executables, seconds_of, seconds_of_call
from rhapsody import ComputeTask, Session
from rhapsody.backends import NoopExecutionBackend

TASKS = 10_000
ROUNDS = 9
MOST_MICROSECONDS = 30


async def bare() -> float:
    """Return microseconds a task on the backend alone."""
    async with NoopExecutionBackend() as backend:
        owner, tasks = Owner(backend), executables(TASKS)
        gc.collect()
        return await seconds_of(owner.run(tasks)) / TASKS * 1e6


async def through_session() -> float:
    """Return microseconds a task through a Session."""
    async with Session([await NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(executable="/bin/true") for _ in range(TASKS)]

        async def run() -> None:
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)

        gc.collect()
        return await seconds_of(run()) / TASKS * 1e6


def making(make: Callable[[int], Any]) -> float:
    gc.collect()
    return seconds_of_call(lambda: [make(i) for i in range(TASKS)]) / TASKS * 1e6


async def measure() -> list[Figure]:
    """Return what a Session adds, and what making a task costs."""
    within, alone = zip(
        *[(await through_session(), await bare()) for _ in range(ROUNDS)], strict=True
    )
    tasks, dicts = zip(*[(making(task), making(plain)) for _ in range(ROUNDS)], strict=True)
    what = f"{TASKS:,} no-op tasks through a Session, each"
    return [
        Figure(what=what, over="the backend alone", ours=within, base=alone, unit="us"),
        Figure(
            what=f"{what}: time added",
            over="the backend alone",
            ours=within,
            base=alone,
            unit="us",
            difference=True,
            at_most=MOST_MICROSECONDS,
        ),
        Figure(
            what="making a ComputeTask", over="making a dict", ours=tasks, base=dicts, unit="us"
        ),
    ]


def task(_number: int) -> ComputeTask:
    return ComputeTask(executable="/bin/true", arguments=["-x"])


def plain(number: int) -> dict[str, Any]:
    return {"uid": f"task.{number:06}", "executable": "/bin/true", "arguments": ["-x"]}
