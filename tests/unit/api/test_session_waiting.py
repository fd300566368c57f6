"""Waiting for a session's tasks."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError
from rhapsody.backends import BaseBackend, ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, good, work
from tests.support.waiting import LIMIT_S


async def test_waiting_for_a_task_of_nobody_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="task stray was not submitted"):
            await session.wait_tasks([ComputeTask(function=work, uid="stray")])


async def test_waiting_raises_no_failures() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        assert await session.wait_tasks(tasks) == tasks
        assert [task.state for task in tasks] == ["DONE", "FAILED"]


async def test_waiting_for_tasks_that_ended_returns_at_once() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.wait_tasks([task], timeout=0) == [task]


async def test_a_wait_that_times_out_says_how_many_ended_and_leaves_the_others(
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


async def test_a_cancelled_wait_leaves_the_tasks_alone(held: HeldBackend) -> None:
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


async def test_who_stops_waiting_spoils_it_for_nobody() -> None:
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
