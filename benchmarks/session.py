"""The overhead of a Session over the no-op backend, of a task object over a plain dict, and of
recording when each task started and ended.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import Owner, executables, functions, seconds_of, seconds_of_call
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend, Work
from rhapsody.backends.core.attachment import Attachment, ignore

TASKS = 10_000
FUNCTIONS = 2_000
ROUNDS = 9
MOST_MICROSECONDS = 30
MOST_RECORDING = 0.02


async def backend_alone() -> float:
    """Return microseconds per task on the backend alone."""
    async with NoopExecutionBackend() as backend:
        owner, tasks = Owner(backend), executables(TASKS)
        gc.collect()
        return await seconds_of(owner.run(tasks)) / TASKS * 1e6


async def through_session() -> float:
    """Return microseconds per task through a Session."""
    async with Session([await NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(executable="/bin/true") for _ in range(TASKS)]

        async def run() -> None:
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)

        gc.collect()
        return await seconds_of(run()) / TASKS * 1e6


def creation(make: Callable[[int], Any]) -> float:
    gc.collect()
    return seconds_of_call(lambda: [make(i) for i in range(TASKS)]) / TASKS * 1e6


def recording() -> float:
    """Return microseconds for recording the start and the end of a task."""
    attachment = Attachment(ignore)
    works = [Work(description, attachment, "") for description in functions(TASKS, nothing)]

    def record() -> None:
        for work in works:
            work.mark_running()
            work.mark_ended("DONE", None)

    gc.collect()
    return seconds_of_call(record) / TASKS * 1e6


async def in_threads() -> float:
    """Return microseconds per task for no-op functions in threads."""
    async with ConcurrentExecutionBackend() as backend:
        owner, tasks = Owner(backend), functions(FUNCTIONS, nothing)
        gc.collect()
        return await seconds_of(owner.run(tasks)) / FUNCTIONS * 1e6


def nothing() -> None:
    return None


async def measure() -> list[Figure]:
    """Return figures of a Session, of creating tasks and of recording them."""
    within, alone = zip(
        *[(await through_session(), await backend_alone()) for _ in range(ROUNDS)], strict=True
    )
    tasks, dicts = zip(*[(creation(task), creation(plain)) for _ in range(ROUNDS)], strict=True)
    records, running = zip(*[(recording(), await in_threads()) for _ in range(ROUNDS)], strict=True)
    what = f"{TASKS:,} no-op tasks through a Session: time per task"
    return [
        Figure(what=what, over="the backend alone", ours=within, base=alone, unit="us"),
        Figure(
            what=f"{TASKS:,} no-op tasks through a Session: time added per task",
            over="the backend alone",
            ours=within,
            base=alone,
            unit="us",
            difference=True,
            at_most=MOST_MICROSECONDS,
        ),
        Figure(
            what="creating a ComputeTask", over="creating a dict", ours=tasks, base=dicts, unit="us"
        ),
        Figure(
            what="recording a task's start and end",
            over="running a no-op function in a thread",
            ours=records,
            base=running,
            unit="us",
            at_most=MOST_RECORDING,
        ),
    ]


def task(_number: int) -> ComputeTask:
    return ComputeTask(executable="/bin/true", arguments=["-x"])


def plain(number: int) -> dict[str, Any]:
    return {"uid": f"task.{number:06}", "executable": "/bin/true", "arguments": ["-x"]}
