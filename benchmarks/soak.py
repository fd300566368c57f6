"""Run mixed tasks for half an hour and kill a worker every 20 s: `make soak`, or

    dragon benchmarks/soak.py [MINUTES]

The exit code is 1 if a task ended in no state or in two, if a task failed for another reason than
the death of its worker, or if memory grew.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

IN_FLIGHT = 500
KILL_SECONDS = 20.0
PRINT_SECONDS = 30.0
GROWTH_BYTES = 64 * 1024 * 1024


def quick(number: int) -> int:
    return number + 1


def slow(number: int) -> int:
    time.sleep(0.01)
    return number + 1


def large(data: bytes) -> bytes:
    return data[::-1]


def failing() -> None:
    raise ValueError("intended")


async def waiting(number: int) -> int:
    await asyncio.sleep(0.02)
    return number + 1


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    """Keeps `IN_FLIGHT` tasks active and counts their final states."""

    def __init__(self, backend: Any, seconds: float) -> None:
        self.backend = backend
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.dice = random.Random(0)
        self.numbers = 0
        self.open: dict[str, dict[str, Any]] = {}
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self.memory: list[int] = []
        self.room = asyncio.Event()
        self.kills = 0
        backend.register_callback(self.on_state)

    def on_state(self, task: dict[str, Any], state: str) -> None:
        if state == "RUNNING":
            return
        mine = self.open.pop(task["uid"], None)
        if mine is None:
            self.problems.append(f"{task['uid']} ended twice")
            return
        error = task.get("exception")
        kind = type(error).__name__ if error is not None else state
        self.ends[kind] += 1
        if kind not in ("DONE", "CANCELED", "WorkerDied", *task["may_end"]):
            self.problems.append(f"{task['uid']} {task['name']}: {error!r}")
        if len(self.open) < IN_FLIGHT:
            self.room.set()

    def task(self) -> dict[str, Any]:
        self.numbers += 1
        number, choice = self.numbers, self.dice.random()
        task: dict[str, Any] = {"uid": f"task.{number}", "may_end": ()}
        if choice < 0.6:
            task |= {"function": quick, "args": (number,)}
        elif choice < 0.8:
            task |= {"function": waiting, "args": (number,)}
        elif choice < 0.9:
            task |= {"function": slow, "args": (number,)}
        elif choice < 0.95:
            task |= {"executable": "/bin/true"}
        elif choice < 0.98:
            task |= {"function": failing, "may_end": ("ValueError",)}
        elif choice < 0.99:
            options = {"timeout": 0.05}
            task |= {"function": time.sleep, "args": (5,), "may_end": ("TaskTimeoutError",)}
            task["task_backend_specific_kwargs"] = options
        else:
            task |= {"function": large, "args": (os.urandom(500_000),)}
        task["name"] = str(task.get("function") or task.get("executable"))
        return task

    async def feed(self) -> None:
        while time.monotonic() < self.deadline:
            self.room.clear()
            tasks = [self.task() for _ in range(IN_FLIGHT - len(self.open))]
            self.open |= {task["uid"]: task for task in tasks}
            await self.backend.submit_tasks(tasks)
            if self.open and self.dice.random() < 0.1:
                await self.backend.cancel_task(self.dice.choice(list(self.open)))
            await self.room.wait()

    async def kill(self) -> None:
        while True:
            await asyncio.sleep(KILL_SECONDS)
            if pids := self.backend.worker_pids:
                os.kill(self.dice.choice(pids), signal.SIGKILL)
                self.kills += 1

    async def print_progress(self) -> None:
        while True:
            await asyncio.sleep(min(PRINT_SECONDS, self.seconds / 10))
            self.memory.append(resident())
            print(
                f"{self.numbers:,} tasks, {self.kills} workers killed, "
                f"{self.memory[-1] / 1e6:.0f} MB: {dict(self.ends)}",
                flush=True,
            )

    async def run(self) -> None:
        helpers = [asyncio.create_task(self.kill()), asyncio.create_task(self.print_progress())]
        await self.feed()
        for task in helpers:
            task.cancel()
        for _ in range(600):
            if not self.open:
                break
            await asyncio.sleep(0.1)
        self.problems += [f"{uid} never ended" for uid in self.open]
        third = len(self.memory) // 3
        if third and max(self.memory[-third:]) > max(self.memory[third:-third]) + GROWTH_BYTES:
            self.problems.append(f"memory grew: {self.memory}")


async def main(minutes: float) -> int:
    from rhapsody.backends import DragonExecutionBackendV3

    async with DragonExecutionBackendV3(num_workers=2, cancel_grace=1.0) as backend:
        soak = Soak(backend, 60 * minutes)
        await soak.run()
    print(f"{soak.numbers:,} tasks: {dict(soak.ends)}")
    for problem in soak.problems[:20]:
        print("PROBLEM", problem)
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.soak import main as run

    sys.exit(asyncio.run(run(float(sys.argv[1]) if len(sys.argv) > 1 else 30)))
