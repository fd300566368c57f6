import asyncio
import gc
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import TaskTimeoutError
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner


async def test_timeout_interrupts_function_in_process(
    processes: ConcurrentRunner, gate: Gate
) -> None:
    await processes.call(functions.add, 1)  # starts the pool, which the timeout must not cover
    task = samples.held("function", "held", gate)
    task["task_backend_specific_kwargs"] = {"timeout": 0.5}
    assert await processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)
    await gate.ended("held")


def catch_everything() -> str:
    try:
        time.sleep(30)
    except BaseException:
        return "a default"
    return "awake"


async def catch_cancellation() -> str:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        return "a default"
    return "awake"


@pytest.mark.parametrize("function", [catch_everything, catch_cancellation])
async def test_timeout_fails_function_that_catches_its_interruption(
    function: Callable[[], Any], processes: ConcurrentRunner
) -> None:
    await processes.call(functions.add, 1)  # starts a worker
    task = {"function": function, "timeout": 0.3}
    with pytest.raises(TaskTimeoutError):
        await processes.backend.run_one(task)
    assert "return_value" not in task


@pytest.mark.parametrize("kind", ["function", "async function"])
async def test_timeout_fails_function_in_thread(
    kind: str, threads: ConcurrentRunner, gate: Gate
) -> None:
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


async def test_finished_function_is_released_before_its_timeout(threads: ConcurrentRunner) -> None:
    class Argument:
        """Takes weak references."""

    arguments = [Argument() for _ in range(50)]
    kept = [weakref.ref(argument) for argument in arguments]
    while arguments:
        task = {"function": id, "args": [arguments.pop()], "timeout": 3600}
        await threads.backend.run_one(task)
    del task
    await threads.call(functions.add, 1)  # makes the thread release the task it ran before
    await service_loop().run(asyncio.sleep(0))
    gc.collect()
    assert [ref() for ref in kept] == [None] * 50


async def test_timeout_ends_process_group_of_executable(
    threads: ConcurrentRunner, gate: Gate
) -> None:
    task = samples.held("executable", "task.1", gate)
    task["task_backend_specific_kwargs"] = {"timeout": 0.5}
    assert await threads.run(task) == ["FAILED"]
    assert "within its timeout of 0.5 s" in str(task["exception"])
    await gate.ended("task.1")


@pytest.mark.parametrize("captured", [False, True])
async def test_executable_keeps_its_output_before_timeout(
    captured: bool, threads: ConcurrentRunner, tmp_path: Path
) -> None:
    threads.backend._work_dir = str(tmp_path)
    script = "echo step 1; echo slow >&2; exec sleep 60"
    task = samples.executable("task.1", "/bin/sh", "-c", script, capture_stdio=captured)
    task["task_backend_specific_kwargs"] = {"timeout": 2}
    assert await threads.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)
    assert task["exit_code"] == -signal.SIGTERM
    written = [task[stream] for stream in ("stdout", "stderr")]
    if captured:
        assert written == [str(tmp_path / f"task.1.{name}") for name in ("stdout", "stderr")]
        written = [Path(path).read_text() for path in written]
    assert written == ["step 1\n", "slow\n"]


async def test_timeout_excludes_time_in_queue() -> None:
    async with ConcurrentExecutionBackend(max_children=1) as backend:
        sleeps = {
            "executable": "sleep",
            "arguments": ["0.4"],
            "task_backend_specific_kwargs": {"timeout": 1.5},
        }
        results = await asyncio.gather(
            *(backend.run_one({**sleeps, "uid": f"task.{n}"}) for n in range(5))
        )
    assert [result["exit_code"] for result in results] == [0] * 5
