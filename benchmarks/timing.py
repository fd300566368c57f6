"""Timers, and an owner that submits tasks to a backend as AsyncFlow does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Owner", "executables", "functions", "seconds_of", "seconds_of_call"]


class Owner:
    """Submits tasks to a backend and waits until all are done."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._left = 0
        self._ended = asyncio.Event()
        backend.register_callback(self._callback)

    async def run(self, tasks: list[dict[str, Any]]) -> None:
        self._left = len(tasks)
        self._ended.clear()
        await self._backend.submit_tasks(tasks)
        await self._ended.wait()

    async def result(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one function and return its result."""
        task: dict[str, Any] = {"uid": "task.0", "function": function, "args": args}
        await self.run([task])
        return task["return_value"]

    def _callback(self, task: Any, state: str) -> None:
        if state == "RUNNING":
            return
        assert state == "DONE", task
        self._left -= 1
        if not self._left:
            self._ended.set()


def functions(number: int, function: Callable[[], Any]) -> list[dict[str, Any]]:
    return [{"uid": f"task.{i:06}", "function": function} for i in range(number)]


def executables(number: int, program: str = "/bin/true") -> list[dict[str, Any]]:
    return [{"uid": f"task.{i:06}", "executable": program} for i in range(number)]


async def seconds_of(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def seconds_of_call(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
