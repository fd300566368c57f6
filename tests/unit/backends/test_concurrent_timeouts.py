"""Time limits of tasks."""

import asyncio
import gc
import weakref

import pytest

from rhapsody.api.errors import (
    TaskTimeoutError,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.service import service_loop
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.concurrent_runner import Runner


async def test_a_function_in_a_process_is_stopped(processes: Runner, gate: Gate) -> None:
    await processes.call(functions.add, 1)  # the time is not for starting the pool
    task = samples.held("function", "held", gate)
    task["task_backend_specific_kwargs"] = {"timeout": 0.5}
    assert await processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)
    await gate.ended("held")


@pytest.mark.parametrize("kind", ["function", "async function"])
async def test_a_function_in_a_thread_fails_in_time(kind: str, threads: Runner, gate: Gate) -> None:
    task = samples.held(kind, "held", gate)
    task["task_backend_specific_kwargs"] = {"timeout": 0.2}
    assert await threads.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)
    if kind == "function":
        gate.release("held")
    await gate.ended("held")
    await threads.call(functions.add, 1)
    assert threads.reports.states("held") == ["RUNNING", "FAILED"]
    assert task.get("return_value") is None


async def test_nothing_is_kept_of_a_function_that_ended_in_time(threads: Runner) -> None:
    class Argument:
        """Takes weak references."""

    arguments = [Argument() for _ in range(50)]
    kept = [weakref.ref(argument) for argument in arguments]
    while arguments:
        task = {"function": id, "args": [arguments.pop()], "timeout": 3600}
        await threads.backend.answer(task)
    del task
    await threads.call(functions.add, 1)  # the thread lets go of what it ran before
    await service_loop().run(asyncio.sleep(0))
    gc.collect()
    assert [ref() for ref in kept] == [None] * 50


async def test_an_executable_is_ended_with_its_children(threads: Runner, gate: Gate) -> None:
    task = samples.held("executable", "task.1", gate)
    task["task_backend_specific_kwargs"] = {"timeout": 0.5}
    assert await threads.run(task) == ["FAILED"]
    assert "within its timeout of 0.5 s" in str(task["exception"])
    await gate.ended("task.1")


async def test_waiting_for_a_free_place_is_not_in_it() -> None:
    async with ConcurrentExecutionBackend(max_children=1) as backend:
        sleeps = {
            "executable": "sleep",
            "arguments": ["0.4"],
            "task_backend_specific_kwargs": {"timeout": 1.5},
        }
        results = await asyncio.gather(
            *(backend.answer({**sleeps, "uid": f"task.{n}"}) for n in range(5))
        )
    assert [result["exit_code"] for result in results] == [0] * 5
