"""Functions in threads and processes."""

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.service import service_loop
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.concurrent_runner import PATIENCE, Runner


def closure(offset: int) -> Callable[[int], int]:
    def add_offset(value: int) -> int:
        return value + offset

    return add_offset


def async_closure(offset: int) -> Callable[[int], Any]:
    async def add_offset(value: int) -> int:
        await asyncio.sleep(0)
        return value + offset

    return add_offset


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(functions.add, id="sync"),
        pytest.param(functions.add_async, id="async"),
        pytest.param(lambda value: value + 1, id="lambda"),
        pytest.param(closure(1), id="closure"),
        pytest.param(async_closure(1), id="async closure"),
        pytest.param(functools.partial(functions.add, right=1), id="partial"),
        pytest.param(functools.partial(functions.add_async, right=1), id="async partial"),
        pytest.param(functions.Counter(1), id="callable object"),
        pytest.param(functions.Counter(1).add, id="bound method"),
        pytest.param(functions.Counter.from_zero, id="class method"),
        pytest.param(functions.Counter.double, id="static method"),
        pytest.param(abs, id="built-in"),
    ],
)
async def test_anything_callable_is_called(function: Any, either: Runner) -> None:
    expected = {functions.Counter.from_zero: 1, abs: 1}.get(function, 2)
    assert await either.call(function, 1) == expected


async def test_arguments_come_by_position_and_by_name(either: Runner) -> None:
    assert await either.call(functions.add, 2, right=40) == 42


async def test_a_function_that_is_none_fails(either: Runner) -> None:
    with pytest.raises(TypeError, match="not callable"):
        await either.call("not a function")


async def test_threads_are_of_this_process(threads: Runner) -> None:
    assert await threads.call(functions.pid) == os.getpid()


async def test_processes_are_others_and_serve_again(processes: Runner) -> None:
    first, second = [await processes.call(functions.pid) for _ in range(2)]
    assert first == second != os.getpid()


async def test_secrets_are_not_in_the_environment_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        key = await Runner(backend).call(lambda: os.environ.get("RHAPSODY_API_KEY"))
    assert key is None


async def test_running_is_reported_when_it_starts(either: Runner, gate: Gate) -> None:
    task = samples.held("function", "task.1", gate)
    await either.backend.submit_tasks([task])
    await gate.started("task.1")
    gate.release("task.1")
    await either.reports.end("task.1")
    assert either.reports.states("task.1") == ["RUNNING", "DONE"]


async def test_few_are_run_and_told_of_while_the_service_loop_is_busy(threads: Runner) -> None:
    free = threading.Event()
    service_loop().call(free.wait, PATIENCE)
    try:
        assert await asyncio.wait_for(threads.call(functions.add, 1), PATIENCE / 2) == 2
    finally:
        free.set()


async def test_many_are_run_too(threads: Runner) -> None:
    tasks = [threads.function(functions.add, n) for n in range(600)]
    assert set(await threads.run(*tasks)) == {"DONE"}
    assert [task["return_value"] for task in tasks] == list(range(1, 601))
