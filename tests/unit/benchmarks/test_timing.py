"""Timers of benchmarks, and their owner of tasks."""

import asyncio
import os

from benchmarks.timing import Owner, executables, functions, seconds_of, seconds_of_call
from rhapsody.backends import ConcurrentExecutionBackend


async def test_owner_waits_until_all_tasks_are_done() -> None:
    tasks = [*functions(3, os.getpid), {**executables(1)[0], "uid": "executable"}]
    async with ConcurrentExecutionBackend() as backend:
        await Owner(backend).run(tasks)
    assert [task["return_value"] for task in tasks] == [os.getpid()] * 3 + [""]


async def test_awaited_time_includes_waiting() -> None:
    assert await seconds_of(asyncio.sleep(0.02)) >= 0.015


def test_call_is_timed() -> None:
    calls: list[int] = []
    assert seconds_of_call(lambda: calls.append(1)) >= 0
    assert calls == [1]


def test_tasks_have_unique_uids() -> None:
    assert len({task["uid"] for task in functions(100, print)}) == 100
