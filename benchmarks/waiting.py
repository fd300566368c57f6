"""What many waiting tasks cost: bytes for each, and how long they hold the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from asyncflow_ext import WorkflowEngine
from benchmarks.figures import Figure
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

TASKS = 300_000
IN_ALL = 1_000_000
WINDOW = 1_000
AT_ONCE = 200
"""Calls between which the program lets its loop run."""

MOST_BYTES = 1_000
MOST_HELD_MS = 50
MIB = 1 << 20


def identity(number: int) -> int:
    return number


def resident_bytes(collect: bool = True) -> int:
    """Return the memory of this process that is in use, if asked for after a collection."""
    if collect:
        gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Holds:
    """Finds the longest time for which the loop ran nothing else: CPU time of its thread, in ms.

    The time for which the thread waits for a CPU or for the interpreter lock is not the work of
    the loop, and is left out.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._watch = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, 1000 * (time.thread_time() - began))

    async def stop(self) -> float:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        return self.longest


async def of_engine() -> list[Figure]:
    """Return figures of calls on the engine that wait for a thread."""
    gate = threading.Event()
    backend = ConcurrentExecutionBackend(max_workers=1)
    async with WorkflowEngine.create(backend=backend) as flow:
        task, closed = flow.function_task(identity), flow.function_task(gate.wait)
        await asyncio.gather(*[task(number) for number in range(1000)])
        first = closed()
        before, holds = resident_bytes(), Holds()
        futures: list[Any] = []
        for number in range(TASKS):
            futures.append(task(number))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        while len(backend._works) <= TASKS:  # noqa: ASYNC110 - nothing tells when it has them
            await asyncio.sleep(0.01)
        taken = resident_bytes(collect=False) - before
        gate.set()
        for future in futures:  # not `gather`, which holds the loop by itself
            await future
        held = await holds.stop()
        await first
        del futures, future
        await asyncio.sleep(0)  # the loop still refers to the last of them
        left = resident_bytes() - before
    return _figures("calls on the engine", taken, left, held)


async def of_session() -> list[Figure]:
    """Return figures of tasks of a session, submitted in one call."""
    gate = threading.Event()
    async with Session([await ConcurrentExecutionBackend(max_workers=1)]) as session:
        first = session.submit(gate.wait)
        before = resident_bytes()
        tasks = [ComputeTask(function=identity, args=(number,)) for number in range(TASKS)]
        holds = Holds()
        await session.submit_tasks(tasks)
        taken = resident_bytes(collect=False) - before
        gate.set()
        await session.wait_tasks(tasks)
        held = await holds.stop()
        await first
        del tasks
        await asyncio.sleep(0)
        left = resident_bytes() - before
    return _figures("tasks of a session", taken, left, held)


def _figures(what: str, taken: int, left: int, held: float) -> list[Figure]:
    what = f"{TASKS:,} {what} that wait"
    return [
        Figure(what=f"{what}: bytes for each", ours=(taken / TASKS,), unit="", at_most=MOST_BYTES),
        Figure(what=f"{what}: bytes for each after their end", ours=(left / TASKS,), unit=""),
        Figure(
            what=f"{what}: longest hold of the loop", ours=(held,), unit="ms", at_most=MOST_HELD_MS
        ),
    ]


async def in_a_window() -> list[Figure]:
    """Return how much the memory grows while tasks pass through the engine."""
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:
        task = flow.function_task(identity)
        window: deque[Any] = deque()
        before = 0
        for number in range(IN_ALL):
            window.append(task(number))
            if len(window) >= WINDOW:
                await window.popleft()
            if number == IN_ALL // 10:
                before = resident_bytes()
        await asyncio.gather(*window)
        grown = (resident_bytes() - before) / MIB
    what = f"{IN_ALL:,} no-op tasks, {WINDOW:,} at a time: growth of memory in MiB"
    return [Figure(what=what, ours=(grown,), unit="", at_most=10)]


async def measure() -> list[Figure]:
    """Return figures of the engine and of a session."""
    return [*await of_engine(), *await of_session(), *await in_a_window()]
