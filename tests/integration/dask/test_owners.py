"""Owners of a Dask backend: both AsyncFlow engines, and a session."""

import asyncio
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

import asyncflow_ext
from rhapsody import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend
from tests.support.on_dask import SMALL
from tests.support.waiting import until

pytestmark = [pytest.mark.dask, pytest.mark.asyncflow]

engines = pytest.mark.parametrize(
    "engine", [StockEngine, asyncflow_ext.WorkflowEngine], ids=["stock", "event-driven"]
)


@engines
async def test_graph_of_functions_and_executables(engine: Any, cluster: Any) -> None:
    flow = await engine.create(backend=await DaskExecutionBackend(cluster=cluster))

    @flow.function_task
    async def double(number: int) -> int:
        return 2 * number

    @flow.function_task
    async def add(*numbers: int) -> int:
        return sum(numbers)

    @flow.executable_task
    async def echo(number: Any) -> str:
        return f"/bin/echo {number}"

    layers = [add(double(n), double(n + 1)) for n in range(20)]
    total = add(*layers)
    assert await total == sum(2 * n + 2 * (n + 1) for n in range(20))
    assert (await echo(await total)).strip() == "800"
    await flow.shutdown()


@engines
async def test_failure_raises_the_functions_exception(engine: Any) -> None:
    flow = await engine.create(backend=await DaskExecutionBackend(SMALL))

    @flow.function_task
    async def broken() -> None:
        raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input"):
        await broken()
    await flow.shutdown()


@engines
async def test_cancelled_task_ends_on_the_cluster(engine: Any) -> None:
    backend = await DaskExecutionBackend(SMALL)
    flow = await engine.create(backend=backend)

    @flow.function_task
    async def forever() -> None:
        await asyncio.sleep(3600)

    task = forever()
    await until(lambda: backend.get_statistics()["active_tasks"] == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: backend.get_statistics()["active_tasks"] == 0)
    await flow.shutdown()


async def test_session_runs_tasks(cluster: Any) -> None:
    async with Session([DaskExecutionBackend(cluster=cluster)]) as session:
        tasks = [ComputeTask(function=pow, args=(n, 2)) for n in range(20)]
        tasks.append(ComputeTask(executable="/bin/echo", arguments=["hello"]))
        await session.submit_tasks(tasks)
        await asyncio.gather(*tasks)
        assert [task.return_value for task in tasks[:-1]] == [n * n for n in range(20)]
        assert tasks[-1].stdout == "hello\n"
        statistics = session.get_statistics()["backends"]["dask"]
        assert statistics["tasks"] == {"DONE": 21}
        assert statistics["backend"]["threads"] == 4


async def test_two_backends_share_a_cluster(cluster: Any) -> None:
    left = DaskExecutionBackend(cluster=cluster, name="left")
    right = DaskExecutionBackend(cluster=cluster, name="right")
    async with Session([left, right]) as session:
        tasks = [
            ComputeTask(function=pow, args=(n, 2), backend="left" if n % 2 else "right")
            for n in range(10)
        ]
        await session.submit_tasks(tasks)
        await asyncio.gather(*tasks)
        await left.shutdown()
        last = ComputeTask(function=pow, args=(3, 2), backend="right")
        await session.submit_tasks([last])
        await last
        assert last.return_value == 9
