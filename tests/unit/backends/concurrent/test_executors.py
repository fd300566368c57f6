import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import BackendError
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner
from tests.support.waiting import until


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
async def test_executor_of_caller_is_never_shut_down(make: Callable[[int], Executor]) -> None:
    with make(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            assert backend.executor is executor
            assert await ConcurrentRunner(backend).call(functions.add, 1) == 2
        assert await asyncio.wrap_future(executor.submit(functions.add, 2)) == 3


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
async def test_tasks_fail_after_shutdown_of_callers_executor(
    make: Callable[[int], Executor],
) -> None:
    executor = make(1)
    executor.shutdown()
    async with ConcurrentExecutionBackend(executor) as backend:
        runner = ConcurrentRunner(backend)
        with pytest.raises(BackendError, match=r"executor does not take tasks: .* shutdown"):
            await runner.call(functions.add, 1)
        tasks = [runner.function(functions.add, n) for n in range(20)]
        assert await runner.run(*tasks) == ["FAILED"] * 20


async def test_shutdown_of_callers_executor_cancels_queued_tasks(gate: Gate) -> None:
    executor = ThreadPoolExecutor(1)
    async with ConcurrentExecutionBackend(executor) as backend:
        runner = ConcurrentRunner(backend)
        await backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        waiting = [runner.function(functions.add, n) for n in range(3)]
        await backend.submit_tasks(waiting)
        executor.shutdown(wait=False, cancel_futures=True)
        ends = [(await runner.reports.end(task["uid"])).state for task in waiting]
        assert ends == ["CANCELED"] * 3
        gate.release("held")
        assert (await runner.reports.end("held")).state == "DONE"


def loky_pool() -> Executor:
    pool: Executor = pytest.importorskip("loky").ProcessPoolExecutor(1)
    return pool


def executorlib_pool() -> Executor:
    pool: Executor = pytest.importorskip("executorlib").SingleNodeExecutor(max_workers=1)
    return pool


@pytest.mark.parametrize("make", [loky_pool, executorlib_pool])
async def test_executor_of_another_library_runs_and_cancels_tasks(
    make: Callable[[], Executor], gate: Gate
) -> None:
    with make() as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = ConcurrentRunner(backend)
            assert await runner.call(functions.add, 1) == 2
            assert await runner.call(functions.add_async, 2) == 3
            with pytest.raises(ValueError, match="no"):
                await runner.call(functions.fail, ValueError, "no")
            waiting = runner.function(functions.add, 1)
            await runner.submit(samples.held("function", "held", gate), waiting)
            await gate.started("held")
        await gate.ended("held")
        assert await runner.end(waiting) == "CANCELED"


class UncancellableFuture(Future[Any]):
    """Cannot be cancelled, like the futures of Parsl."""

    def cancel(self) -> bool:
        raise NotImplementedError


class UncancellableExecutor(Executor):
    """Runs no call by itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[UncancellableFuture, Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = UncancellableFuture()
        self.calls.append((future, functools.partial(fn, *args, **kwargs)))
        return future


async def test_uncancellable_future_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = UncancellableExecutor()
    async with ConcurrentExecutionBackend(executor) as backend:
        runner = ConcurrentRunner(backend)
        tasks = [runner.function(functions.add, n) for n in range(2)]
        await runner.submit(*tasks)
        await until(lambda: len(executor.calls) == 2)
        assert await backend.cancel_task(tasks[0]["uid"])
    assert [await runner.end(task) for task in tasks] == ["CANCELED"] * 2
    for future, call in executor.calls:
        future.set_result(call())
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("executor", ["fibre", 3])
def test_executor_of_wrong_type_is_refused(executor: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a concurrent\.futures\.Executor, 'thread'"):
        ConcurrentExecutionBackend(executor)


@pytest.mark.parametrize("field", ["max_workers", "max_children"])
def test_size_below_one_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        ConcurrentExecutionBackend(**{field: 0})  # type: ignore[arg-type]
