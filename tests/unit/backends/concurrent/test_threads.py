import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.core.service_loop import THREAD_NAME, service_loop
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate, hold
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner
from tests.support.waiting import LIMIT_S, until


async def test_threads_belong_to_this_process(threads: ConcurrentRunner) -> None:
    assert await threads.call(functions.pid) == os.getpid()


@pytest.mark.parametrize("count", [1, 20])  # submitted on the caller's loop, on the service loop
async def test_function_sees_context_variables_of_its_submission(
    count: int, threads: ConcurrentRunner
) -> None:
    async def get() -> str:
        return variable.get()

    variable = ContextVar("variable", default="lost")
    variable.set("kept")
    tasks = [threads.function(function) for function in [variable.get, get] * count]
    assert set(await threads.run(*tasks)) == {"DONE"}
    assert {task["return_value"] for task in tasks} == {"kept"}


async def test_few_functions_finish_while_service_loop_is_blocked(
    threads: ConcurrentRunner,
) -> None:
    free = threading.Event()
    service_loop().call(free.wait, LIMIT_S)
    try:
        assert await asyncio.wait_for(threads.call(functions.add, 1), LIMIT_S / 2) == 2
    finally:
        free.set()


async def test_late_result_is_not_reported_for_later_task_of_same_uid(gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_workers=2) as backend:
        runner = ConcurrentRunner(backend)
        await backend.submit_tasks([samples.held("function", "task.9", gate)])
        await gate.started("task.9")
        assert await backend.cancel_task("task.9")
        later = samples.function("task.9", hold, *gate.address, "later")
        await backend.submit_tasks([later])
        await gate.started("later")
        gate.release("task.9")
        await runner.call(functions.add, 1)  # in the thread of the first task
        assert runner.reports.states("task.9") == ["RUNNING", "CANCELED", "RUNNING"]
        gate.release("later")
        await until(lambda: later.get("return_value") == "later")


async def test_submit_of_callers_class_runs_on_service_loop() -> None:
    threads: list[str] = []

    class RecordingExecutor(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread().name)
            return super().submit(*args, **kwargs)

    with RecordingExecutor(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            assert await ConcurrentRunner(backend).call(functions.add, 1) == 2
    assert threads == [THREAD_NAME]


async def test_shutdown_leaves_running_threads_and_starts_no_more(
    gate: Gate, tmp_path: Path
) -> None:
    backend = ConcurrentExecutionBackend(max_workers=1)
    runner = ConcurrentRunner(backend)
    held = samples.held("function", "held", gate)
    await backend.submit_tasks([held])
    await gate.started("held")
    waiting = [runner.function(Path.touch, tmp_path / str(n)) for n in range(300)]
    await backend.submit_tasks(waiting[:3])
    await backend.submit_tasks(waiting[3:])
    await backend.shutdown()
    for task in waiting:
        assert runner.reports.states(task["uid"]) == ["CANCELED"]
    gate.release("held")
    await gate.ended("held")
    assert await runner.call(functions.add, 1) == 2
    await backend.shutdown()
    assert runner.reports.states("held") == ["RUNNING", "CANCELED"]
    assert held.get("return_value") is None
    assert list(tmp_path.iterdir()) == []


async def test_tasks_fail_if_executor_cannot_start_threads() -> None:
    failing = ThreadPoolExecutor(1, initializer=functions.fail, initargs=(ValueError,))
    with failing as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = ConcurrentRunner(backend)
            for _ in range(2):
                with pytest.raises(BrokenExecutor, match="initializer failed"):
                    await runner.call(functions.add, 1)


FORK = """
import os, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from rhapsody import Session
from rhapsody.backends import ConcurrentExecutionBackend

warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads

def fork(way):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if way == "exit":
        sys.exit(3)
    if way == "raise":
        raise ValueError("in the child")

for executor in (None, ThreadPoolExecutor(1)):
    with Session([ConcurrentExecutionBackend(executor or "thread", max_workers=None)]) as session:
        print([session.submit(fork, way).result(timeout=20) for way in ("return", "exit", "raise")])
"""


def test_forked_child_that_comes_back_from_its_function_ends() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=50, check=True
    )
    assert run.stdout == "[0, 3, 1]\n" * 2
    assert run.stderr.count("ValueError: in the child") == 2
