"""Sessions deliver results, errors and captured output."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import QueueTimeoutError, SessionError, TaskExecutionError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Inference, boom, work
from tests.support.waiting import LIMIT_S, until


async def test_await_returns_the_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert await task is task
        assert task.state == "DONE"


async def test_gather_returns_tasks_in_order() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(20)]
        await session.submit_tasks(tasks)
        results = await asyncio.gather(*tasks)
        assert [task.return_value for task in results] == [i * i for i in range(20)]


async def test_submit_tasks_returns_one_future_per_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(executable="true")]
        futures = await session.submit_tasks(tasks)
        assert [await future for future in futures] == tasks


async def test_submit_single_task_without_list() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        (future,) = await session.submit_tasks(task)
        assert await future is task


async def test_submit_and_wait_accept_empty_list() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        assert await session.submit_tasks([]) == []
        assert await session.wait_tasks([]) == []


async def test_results_are_written_into_submitted_dict() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task: dict[str, Any] = {"function": work}
        (future,) = await session.submit_tasks([task])
        assert await future is task
        assert (task["state"], task["return_value"]) == ("DONE", 3)
        assert task["uid"]


async def test_failed_function_raises_its_exception() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=boom)
        await session.submit_tasks([task])
        with pytest.raises(ValueError, match="intended"):
            await task
        assert task.state == "FAILED"
        assert isinstance(task.exception, ValueError)


async def test_failed_executable_raises_error_with_exit_code() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(executable="/bin/sh", arguments=["-c", "echo why >&2; exit 3"])
        await session.submit_tasks([task])
        with pytest.raises(TaskExecutionError, match="why") as failed:
            await task
        assert failed.value.exit_code == 3


async def test_unawaited_failure_logs_no_warning(asyncio_errors: list[str]) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    del tasks
    gc.collect()
    assert asyncio_errors == []


async def test_task_completes_without_user_reference(held: HeldBackend) -> None:
    async with Session([held]) as session:
        (future,) = await session.submit_tasks([ComputeTask(function=work)])
        gc.collect()
        held.release()
        assert (await future)["state"] == "DONE"


async def test_captured_output_is_written_to_session_directory(tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    async with Session([backend], uid="mine", work_dir=tmp_path) as session:
        task = ComputeTask(executable="echo", arguments=["hi"], uid="t", capture_stdio=True)
        await session.submit_tasks([task])
        await task
        assert task.stdout == str(tmp_path / "mine" / "t.stdout")
        assert Path(task.stdout).read_text() == "hi\n"


async def test_relative_work_dir_does_not_follow_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    async with Session([ConcurrentExecutionBackend()], uid="mine", work_dir="runs") as session:
        monkeypatch.chdir(elsewhere)
        task = ComputeTask(executable="echo", arguments=["hi"], uid="t", capture_stdio=True)
        await session.submit_tasks([task])
        await task
    assert (tmp_path / "runs" / "mine" / "t.stdout").read_text() == "hi\n"
    assert task.stdout == str(tmp_path / "runs" / "mine" / "t.stdout")
    assert list(elsewhere.iterdir()) == []


async def test_numpy_scalars_are_arguments_and_timeouts() -> None:
    np = pytest.importorskip("numpy")
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(
            executable="echo",
            arguments=[np.int64(1), np.float32(0.1)],
            timeout=np.int64(20),
            task_backend_specific_kwargs={"timeout": np.int64(20)},
        )
        await session.submit_tasks(task)
        assert (await task).stdout == "1 0.1\n"


async def test_task_that_waits_longer_than_its_queue_timeout_fails() -> None:
    release = threading.Event()
    async with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:
        occupying = ComputeTask(function=release.wait, args=[LIMIT_S])
        await session.submit_tasks(occupying)
        await until(lambda: occupying.state == "RUNNING")
        waiting = ComputeTask(function=int, queue_timeout=0.05)
        await session.submit_tasks(waiting)
        with pytest.raises(QueueTimeoutError, match="did not start within its queue_timeout"):
            await asyncio.wait_for(waiting, LIMIT_S)
        assert waiting.state == "FAILED"
        release.set()
        await occupying
        later = ComputeTask(function=int, queue_timeout=60)
        await session.submit_tasks(later)
        assert (await later).return_value == 0


async def test_queue_timeout_is_refused_where_it_cannot_work() -> None:
    async with Session([NoopExecutionBackend(), Inference("ai", "m")]) as session:
        quiet = ComputeTask(function=int, queue_timeout=1)
        with pytest.raises(TaskValidationError, match="'noop' does not report when a function"):
            await session.submit_tasks(quiet)
        with pytest.raises(TaskValidationError, match="'timeout' of a prompt includes"):
            AITask("why?", queue_timeout=1)
        with pytest.raises(
            TaskValidationError, match="'queue_timeout' must be a number of seconds"
        ):
            ComputeTask(function=int, queue_timeout=-1)


async def test_backend_itself_refuses_queue_timeout_that_it_cannot_keep() -> None:
    reports: list[tuple[Any, str]] = []
    async with NoopExecutionBackend() as backend:
        backend.register_callback(lambda task, state: reports.append((task, state)))
        await backend.submit_tasks([{"uid": "t", "function": int, "queue_timeout": 1}])
        await until(lambda: reports)
    [(task, state)] = reports
    assert state == "FAILED"
    assert "'queue_timeout' cannot limit its wait" in str(task["exception"])


class Value:
    """A value that can be referred to weakly."""


@pytest.mark.parametrize("nested", [False, True])
async def test_result_is_freed_with_its_task_without_a_garbage_collection(nested: bool) -> None:
    def make() -> Value:
        if not nested:
            return Value()
        inner = session.submit(Value)
        value: Value = inner.result()
        return value

    async with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:
        gc.collect()
        gc.disable()
        try:
            task = session.submit(make)
            await task
            result = weakref.ref(task.return_value)
            del task
            for _ in range(100):  # a thread may hold it a moment longer
                if result() is None:
                    break
                await asyncio.sleep(0.01)
            assert result() is None
        finally:
            gc.enable()


async def test_task_that_has_ended_can_be_awaited_again_and_calls_back() -> None:
    called: list[Any] = []
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = session.submit(pow, 2, 3)
        assert await task is task
        assert await task is task
        task.add_done_callback(lambda future: called.append(future.result()))
        assert task.remove_done_callback(called.append) == 0
        await asyncio.wait([task], timeout=10)
        await asyncio.sleep(0)
    assert called == [task]
    assert task.result() == 8
    with pytest.raises(SessionError, match="is closed"):
        await session.submit_tasks(task)
