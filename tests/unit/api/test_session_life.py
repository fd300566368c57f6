"""A session's life: its end, its loops, others beside it."""

import asyncio

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Recording, good, work
from tests.support.waiting import LIMIT_S


async def test_a_closed_session_refuses_tasks_and_backends() -> None:
    session = Session([NoopExecutionBackend()])
    await session.close()
    with pytest.raises(SessionError, match="is closed; make a new one"):
        await session.submit_tasks([good()])
    with pytest.raises(SessionError, match="is closed"):
        session.add_backend(NoopExecutionBackend("other"))


async def test_closing_in_the_middle_cancels_what_is_active(held: HeldBackend) -> None:
    session = Session([held])
    tasks = [ComputeTask(function=work) for _ in range(5)]
    await session.submit_tasks(tasks)
    await session.close()
    assert [task.state for task in tasks] == ["CANCELED"] * 5
    for task in tasks:
        with pytest.raises(TaskCancelledError):
            await task


async def test_whoever_waits_is_woken_when_the_session_is_closed(held: HeldBackend) -> None:
    session = Session([held])
    task = good()
    await session.submit_tasks([task])
    waiting = asyncio.ensure_future(session.wait_tasks([task]))
    await asyncio.sleep(0)
    await session.close()
    assert await asyncio.wait_for(waiting, LIMIT_S) == [task]


async def test_closing_twice_and_at_once_is_closing() -> None:
    session = Session([NoopExecutionBackend()])
    await asyncio.gather(session.close(), session.close())
    await session.close()
    assert session.closed


async def test_two_sessions_work_side_by_side() -> None:
    async with Session([Recording("a")]) as one, Session([Recording("b")]) as two:
        tasks = [ComputeTask(function=work, uid="same"), ComputeTask(function=work, uid="same")]
        await asyncio.gather(one.submit_tasks(tasks[:1]), two.submit_tasks(tasks[1:]))
        assert [(await task).backend for task in tasks] == ["a", "b"]


def test_a_session_made_without_a_loop_binds_to_the_one_of_its_first_use() -> None:
    session = Session([NoopExecutionBackend()])

    async def use() -> str:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        return str((await task).state)

    assert asyncio.run(use()) == "DONE"
    assert asyncio.run(use()) == "DONE"  # the first loop is closed, nothing is active there
    asyncio.run(session.close())


async def test_a_session_with_active_tasks_stays_on_its_loop(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([good()])
        with pytest.raises(SessionError, match="tasks on another event loop"):
            await asyncio.to_thread(session.run, [ComputeTask(function=work)])


def test_tasks_of_a_loop_that_is_gone_are_ended_on_another() -> None:
    session = Session([HeldBackend()])
    task = good()
    asyncio.run(session.submit_tasks([task]))
    asyncio.run(session.close())
    assert task.state == "CANCELED"
