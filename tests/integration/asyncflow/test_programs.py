"""Workflow programs in threads and processes, and backends that change their owner."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import BackendInUseError
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.engines import ENGINES, make_engine

pytestmark = pytest.mark.asyncflow


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["thread", "process"])
async def flow(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> AsyncIterator[Any]:
    backend = await ConcurrentExecutionBackend(request.param, max_workers=2)
    flow = await make_engine(kind, backend, work_dir=str(tmp_path))
    yield flow
    await flow.shutdown()


async def test_ten_diamonds_run_at_once(flow: Any) -> None:
    run_workflow = diamond(flow)
    results = await asyncio.gather(*[run_workflow(i) for i in range(10)])
    assert results == [{"total_sum": 499500, "even_count": 500}] * 10


async def test_second_step_gets_result_of_first(flow: Any) -> None:
    @flow.function_task
    async def step1() -> str:
        return "data"

    @flow.function_task
    async def step2(input_data: str) -> str:
        return f"processed_{input_data}"

    result1 = step1()
    result2 = step2(result1)
    assert await result2 == "processed_data"


def diamond(flow: Any) -> Any:
    @flow.function_task
    async def task1(*args: Any) -> int:
        return sum(range(1000))

    @flow.function_task
    async def task2(*args: Any) -> list[int]:
        assert args == (499500,)
        return [x for x in range(1000) if x % 2 == 0]

    @flow.function_task
    async def task3(*args: Any) -> dict[str, int]:
        sum_data, even_numbers = args
        return {"total_sum": sum_data, "even_count": len(even_numbers)}

    async def run_workflow(_number: int) -> Any:
        t1 = task1()
        t2 = task2(t1)
        return await task3(t1, t2)

    return run_workflow


async def test_thousand_workflows_run_at_once(kind: str, tmp_path: Path) -> None:
    flow = await make_engine(kind, ConcurrentExecutionBackend(), work_dir=str(tmp_path))
    try:
        run_workflow = diamond(flow)
        results = await asyncio.gather(*[run_workflow(i) for i in range(1000)])
        assert results == [{"total_sum": 499500, "even_count": 500}] * 1000
    finally:
        await flow.shutdown()


async def one_task(flow: Any) -> int:
    @flow.function_task
    async def three() -> int:
        return 3

    return int(await three())


@pytest.mark.parametrize("skip", [False, True])
async def test_backend_serves_one_engine_after_another(
    kind: str, skip: bool, tmp_path: Path
) -> None:
    backend = ConcurrentExecutionBackend()
    for _ in range(2):
        flow = await make_engine(kind, backend, work_dir=str(tmp_path))
        assert await one_task(flow) == 3
        await flow.shutdown(skip_execution_backend=skip)
    await backend.shutdown()
    assert len(backend.attached_to) == 2


async def test_backend_of_open_engine_is_rejected_by_session(kind: str, tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    flow = await make_engine(kind, backend, work_dir=str(tmp_path), uid="mine")
    try:
        with pytest.raises(BackendInUseError, match="attached to WorkflowEngine mine"):
            Session([backend])
        assert await one_task(flow) == 3
        assert backend.attached_to == ["mine"]
        assert backend._work_dir == str(tmp_path / "mine")
    finally:
        await flow.shutdown()


async def test_backend_of_open_session_is_rejected_by_engine(kind: str, tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    async with Session([backend], uid="mine", work_dir=tmp_path) as session:
        with pytest.raises(BackendInUseError, match="attached to Session mine"):
            await make_engine(kind, backend, work_dir=str(tmp_path))
        task = ComputeTask("echo", arguments=["hi"], capture_stdio=True)
        await session.submit_tasks([task])
        assert (await task).stdout == str(tmp_path / "mine" / f"{task.uid}.stdout")


async def test_backend_serves_session_engine_and_session_in_turn(kind: str, tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    async with Session([backend]) as session:
        task = ComputeTask(function=int)
        await session.submit_tasks([task])
        await task
    flow = await make_engine(kind, backend, work_dir=str(tmp_path))
    assert await one_task(flow) == 3
    await flow.shutdown()
    async with Session([backend]) as session:
        task = ComputeTask(function=int)
        await session.submit_tasks([task])
        assert (await task).state == "DONE"


async def test_session_and_engine_run_side_by_side(kind: str, tmp_path: Path) -> None:
    flow = await make_engine(kind, ConcurrentExecutionBackend(), work_dir=str(tmp_path))
    try:
        async with Session([ConcurrentExecutionBackend()]) as session:
            task = ComputeTask(function=pow, args=(3, 2))
            run_workflow = diamond(flow)
            workflow = asyncio.ensure_future(run_workflow(0))
            await session.submit_tasks([task])
            assert (await task).return_value == 9
            assert (await workflow)["even_count"] == 500
    finally:
        await flow.shutdown()
