import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ConfigurationError
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner
from tests.support.waiting import until


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
async def test_any_callable_is_called(function: Any, either: ConcurrentRunner) -> None:
    expected = {functions.Counter.from_zero: 1, abs: 1}.get(function, 2)
    assert await either.call(function, 1) == expected


async def test_args_and_kwargs_are_passed(either: ConcurrentRunner) -> None:
    assert await either.call(functions.add, 2, right=40) == 42


async def test_non_callable_function_fails(either: ConcurrentRunner) -> None:
    with pytest.raises(TypeError, match="not callable"):
        await either.call("not a function")


async def test_running_is_reported_at_start(either: ConcurrentRunner, gate: Gate) -> None:
    task = samples.held("function", "task.1", gate)
    await either.backend.submit_tasks([task])
    await gate.started("task.1")
    await until(lambda: either.began(task))  # of a call that ends at once, only the end is reported
    gate.release("task.1")
    await either.reports.end("task.1")
    assert either.reports.states("task.1") == ["RUNNING", "DONE"]


async def test_many_functions_finish(threads: ConcurrentRunner) -> None:
    tasks = [threads.function(functions.add, n) for n in range(600)]
    assert set(await threads.run(*tasks)) == {"DONE"}
    assert [task["return_value"] for task in tasks] == list(range(1, 601))


@pytest.mark.parametrize("option", ["async_per_worker", "memory_limit"])
def test_options_of_worker_processes_are_refused_for_threads(option: str) -> None:
    options: dict[str, Any] = {option: 8}
    for executor in ("thread", None):
        with pytest.raises(ConfigurationError, match=f"'{option}' applies only to worker proc"):
            ConcurrentExecutionBackend(executor, **options)
