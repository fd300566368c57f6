"""Sessions wait for tasks."""

import asyncio
import sys
import threading
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError
from rhapsody.backends import BaseBackend, ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, good, work
from tests.support.waiting import LIMIT_S


async def test_wait_refuses_unsubmitted_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="task stray was not submitted"):
            await session.wait_tasks([ComputeTask(function=work, uid="stray")])


async def test_wait_does_not_raise_failures() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        assert await session.wait_tasks(tasks) == tasks
        assert [task.state for task in tasks] == ["DONE", "FAILED"]


async def test_wait_returns_at_once_for_ended_tasks() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.wait_tasks([task], timeout=0) == [task]


async def test_wait_timeout_counts_ended_tasks_and_leaves_others_running(
    held: HeldBackend,
) -> None:
    async with Session([held, NoopExecutionBackend()]) as session:
        ended, waiting = ComputeTask(function=work, backend="noop"), ComputeTask(function=work)
        await session.submit_tasks([ended, waiting])
        await ended
        with pytest.raises(asyncio.TimeoutError, match=r"1 of 2 tasks ended within 0.01 s"):
            await session.wait_tasks([ended, waiting], timeout=0.01)
        assert not waiting.done
        held.release()
        await session.wait_tasks([ended, waiting], timeout=LIMIT_S)
        assert waiting.state == "DONE"


async def test_cancelled_wait_leaves_task_running(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks([task])
        waiting = asyncio.ensure_future(session.wait_tasks([task]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.release()
        assert (await task).state == "DONE"


async def test_timed_out_waiter_does_not_cancel_the_task() -> None:
    gate = threading.Event()

    class Held(BaseBackend):
        async def execute(self, work: Any) -> dict[str, Any]:
            await asyncio.get_running_loop().run_in_executor(None, gate.wait)
            return {"return_value": 42}

    async with Session([Held()]) as session:
        task = ComputeTask(function=len)
        [future] = await session.submit_tasks([task])
        for waited in (task, future):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(waited, 0.01)
        waiting = asyncio.ensure_future(session.wait_tasks([task]))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        await waiting
        assert (await task).return_value == 42


async def test_asyncio_wait_accepts_tasks(held: HeldBackend) -> None:
    async with Session([held, NoopExecutionBackend()]) as session:
        ended, waiting = ComputeTask(function=work, backend="noop"), good()
        await session.submit_tasks([ended, waiting])
        given: Any = [ended, waiting]
        done, pending = await asyncio.wait(given, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(pending)) == (1, 1)
        if sys.version_info >= (3, 11):  # before, asyncio wraps them in tasks of its own
            assert (done, pending) == ({ended}, {waiting})
        held.release()
        done, pending = await asyncio.wait(given, timeout=LIMIT_S)
        assert (len(done), len(pending)) == (2, 0)


async def test_asyncio_wait_for_first_exception_accepts_tasks(held: HeldBackend) -> None:
    async with Session([held, ConcurrentExecutionBackend()]) as session:
        bad, waiting = ComputeTask(function=boom, backend="concurrent"), good()
        await session.submit_tasks([bad, waiting])
        given: Any = [bad, waiting]
        done, pending = await asyncio.wait(given, return_when=asyncio.FIRST_EXCEPTION)
        assert (len(done), len(pending)) == (1, 1)
        assert not waiting.done()
        held.release()
        await waiting


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no TaskGroup")
async def test_task_group_waits_for_tasks(held: HeldBackend) -> None:
    async def result_of(task: ComputeTask) -> Any:
        return (await task).return_value

    async with Session([NoopExecutionBackend()]) as session:
        tasks = [session.submit(work) for _ in range(3)]
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            waiting = [group.create_task(result_of(task)) for task in tasks]
        assert [job.result() for job in waiting] == [task.return_value for task in tasks]


async def test_done_callback_is_called_at_the_end_unless_removed(held: HeldBackend) -> None:
    called: list[Any] = []
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks(task)
        task.add_done_callback(called.append)
        task.add_done_callback(print)
        assert task.remove_done_callback(print) == 1
        held.release()
        await task
        await asyncio.sleep(0)
    assert [future.result() for future in called] == [task]


async def test_asyncio_as_completed_accepts_tasks() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work) for _ in range(3)]
        await session.submit_tasks(tasks)
        ended = [await next_one for next_one in asyncio.as_completed(tasks)]
    assert set(ended) == set(tasks)
