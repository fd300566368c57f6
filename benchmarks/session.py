"""What a Session adds to the bare no-op backend, and what a task costs beside a plain dict.

Set RHAPSODY_PEER_PYTHON to the interpreter of an environment that has `rhapsody-py` to put the
same programs to that.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rhapsody
from rhapsody import ComputeTask, Session
from rhapsody.backends import NoopExecutionBackend

TASKS = 10_000
ROUNDS = 9
MOST_MICROSECONDS = 30

# For both packages alike: prints the median microseconds of a task's making and of its way
# through a Session.
PROGRAM = """
import asyncio, gc, json, statistics, sys, time
from rhapsody.api import ComputeTask, Session
try:
    from rhapsody.backends import NoopExecutionBackend
except ImportError:
    from rhapsody.backends.execution.noop import NoopExecutionBackend

async def main(number, rounds):
    making, running = [], []
    for _ in range(rounds):
        backend = await NoopExecutionBackend()
        session = Session([backend])
        gc.collect()
        began = time.perf_counter()
        tasks = [ComputeTask(executable="/bin/true", backend=backend.name) for _ in range(number)]
        made = time.perf_counter()
        futures = await session.submit_tasks(tasks)
        await asyncio.gather(*futures)
        ended = time.perf_counter()
        making.append(made - began)
        running.append(ended - made)
        await session.close()
    print(json.dumps([statistics.median(seconds) / number * 1e6 for seconds in (making, running)]))

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


def per_task(seconds: list[float]) -> float:
    return statistics.median(seconds) / TASKS * 1e6


async def bare() -> float:
    """Submit dicts to the backend itself, as an owner does, and wait for the last result."""
    backend = await NoopExecutionBackend()
    ended = asyncio.Event()
    left = TASKS

    def callback(task: Any, state: str) -> None:
        nonlocal left
        if state == "DONE":
            left -= 1
            if not left:
                ended.set()

    backend.register_callback(callback)
    tasks = [{"uid": f"task.{i}", "executable": "/bin/true"} for i in range(TASKS)]
    gc.collect()
    began = time.perf_counter()
    await backend.submit_tasks(tasks)
    await ended.wait()
    seconds = time.perf_counter() - began
    await backend.shutdown()
    return seconds


async def through_session() -> float:
    async with Session([await NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(executable="/bin/true") for _ in range(TASKS)]
        gc.collect()
        began = time.perf_counter()
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        return time.perf_counter() - began


def making(make: Callable[[int], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    made = [make(i) for i in range(TASKS)]
    seconds = time.perf_counter() - began
    assert len(made) == TASKS
    return seconds


async def program(python: str) -> tuple[float, float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if python == sys.executable:  # this very checkout, installed or not
        environment["PYTHONPATH"] = str(Path(rhapsody.__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(python, "-c", PROGRAM, str(TASKS), "5"), stdout=-1, cwd=folder, env=environment
        )
        output, _ = await process.communicate()
    making_us, running_us = json.loads(output.splitlines()[-1])
    return making_us, running_us


async def measure() -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, ratio, how it was taken."""
    pairs = [(await bare(), await through_session()) for _ in range(ROUNDS)]
    alone, within = (per_task(list(column)) for column in zip(*pairs, strict=True))
    added = within - alone
    verdict = "within" if added <= MOST_MICROSECONDS else "ABOVE"
    rows = [
        (
            f"{TASKS:,} no-op tasks: Session over the bare backend",
            f"{within / alone:.1f}",
            f"{added:.1f} us a task of Session time, {verdict} the {MOST_MICROSECONDS} allowed "
            f"({within:.1f} us against {alone:.1f} us)",
        )
    ]
    makers: list[Callable[[int], Any]] = [
        lambda i: ComputeTask(executable="/bin/true", arguments=["-x"]),
        lambda i: {"uid": f"task.{i:06d}", "executable": "/bin/true", "arguments": ["-x"]},
    ]
    ours, plain = (per_task([making(make) for _ in range(ROUNDS)]) for make in makers)
    rows.append(
        (
            "making a ComputeTask over making a dict",
            f"{ours / plain:.1f}",
            f"{ours:.2f} us against {plain:.2f} us",
        )
    )
    peer = os.environ.get("RHAPSODY_PEER_PYTHON")
    if peer:
        both = [await program(python) for python in (sys.executable, peer)]
        for what, mine, theirs in zip(
            ("making a ComputeTask", "a Session's task"), *both, strict=True
        ):
            rows.append(
                (
                    f"{what}, over the peer's",
                    f"{mine / theirs:.2f}",
                    f"{mine:.1f} us, {theirs:.1f} us",
                )
            )
    return rows
