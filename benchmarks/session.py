"""What a Session adds to the bare no-op backend, what a task costs beside a plain dict, and what it
costs that backends note when each task started and ended.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import Owner, executables, functions, seconds_of, seconds_of_call
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend, Work
from rhapsody.backends.attachment import Attachment, ignore

TASKS = 10_000
FUNCTIONS = 2_000
ROUNDS = 9
MOST_MICROSECONDS = 30
MOST_NOTING = 0.02


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


def noting() -> float:
    """Return microseconds for the notes of a task's start and end."""
    attachment = Attachment(ignore)
    works = [Work(description, attachment, "") for description in functions(TASKS, nothing)]

    def note() -> None:
        for work in works:
            work.start()
            work.end("DONE", None)

    gc.collect()
    return seconds_of_call(note) / TASKS * 1e6


async def in_threads() -> float:
    """Return microseconds a task for functions in threads that do nothing."""
    async with ConcurrentExecutionBackend() as backend:
        owner, tasks = Owner(backend), functions(FUNCTIONS, nothing)
        gc.collect()
        return await seconds_of(owner.run(tasks)) / FUNCTIONS * 1e6


def nothing() -> None:
    return None


async def measure() -> list[Figure]:
    """Return what a Session adds, what making a task costs, and what the notes of one do."""
    within, alone = zip(
        *[(await through_session(), await bare()) for _ in range(ROUNDS)], strict=True
    )
    tasks, dicts = zip(*[(making(task), making(plain)) for _ in range(ROUNDS)], strict=True)
    notes, running = zip(*[(noting(), await in_threads()) for _ in range(ROUNDS)], strict=True)
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
        Figure(
            what="noting a task's start and end",
            over="running a function that does nothing in a thread",
            ours=notes,
            base=running,
            unit="us",
            at_most=MOST_NOTING,
        ),
    ]


def task(_number: int) -> ComputeTask:
    return ComputeTask(executable="/bin/true", arguments=["-x"])


def plain(number: int) -> dict[str, Any]:
    return {"uid": f"task.{number:06}", "executable": "/bin/true", "arguments": ["-x"]}
