"""What a session's tasks come to: results, errors and output."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import TaskExecutionError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work


async def test_awaiting_a_task_gives_the_task_itself() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert await task is task
        assert task.state == "DONE"


async def test_gathering_tasks_gives_them_in_order_with_their_results() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(20)]
        await session.submit_tasks(tasks)
        results = await asyncio.gather(*tasks)
        assert [task.return_value for task in results] == [i * i for i in range(20)]


async def test_submitting_gives_a_future_of_each_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(executable="true")]
        futures = await session.submit_tasks(tasks)
        assert [await future for future in futures] == tasks


async def test_a_single_task_needs_no_list() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        (future,) = await session.submit_tasks(task)
        assert await future is task


async def test_no_tasks_are_no_error() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        assert await session.submit_tasks([]) == []
        assert await session.wait_tasks([]) == []


async def test_a_dict_is_a_task_and_results_are_written_into_it() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task: dict[str, Any] = {"function": work}
        (future,) = await session.submit_tasks([task])
        assert await future is task
        assert (task["state"], task["return_value"]) == ("DONE", 3)
        assert task["uid"]


async def test_a_failed_function_raises_its_own_exception() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=boom)
        await session.submit_tasks([task])
        with pytest.raises(ValueError, match="intended"):
            await task
        assert task.state == "FAILED"
        assert isinstance(task.exception, ValueError)


async def test_a_failed_executable_raises_its_exit_code() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(executable="/bin/sh", arguments=["-c", "echo why >&2; exit 3"])
        await session.submit_tasks([task])
        with pytest.raises(TaskExecutionError, match="why") as failed:
            await task
        assert failed.value.exit_code == 3


async def test_a_failure_that_nobody_awaits_is_no_warning(asyncio_errors: list[str]) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    del tasks
    gc.collect()
    assert asyncio_errors == []


async def test_results_come_although_the_user_keeps_no_task(held: HeldBackend) -> None:
    async with Session([held]) as session:
        (future,) = await session.submit_tasks([ComputeTask(function=work)])
        gc.collect()
        held.release()
        assert (await future).state == "DONE"


async def test_captured_output_goes_to_the_sessions_directory(tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    async with Session([backend], uid="mine", work_dir=tmp_path) as session:
        task = ComputeTask(executable="echo", arguments=["hi"], uid="t", capture_stdio=True)
        await session.submit_tasks([task])
        await task
        assert task.stdout == str(tmp_path / "mine" / "t.stdout")
        assert Path(task.stdout).read_text() == "hi\n"
