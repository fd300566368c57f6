"""Sessions open, move between event loops and close."""

import asyncio
import threading

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Recording, good, work
from tests.support.waiting import LIMIT_S


async def test_closed_session_refuses_tasks_and_backends() -> None:
    session = Session([NoopExecutionBackend()])
    await session.close()
    with pytest.raises(SessionError, match="is closed; make a new one"):
        await session.submit_tasks([good()])
    with pytest.raises(SessionError, match="is closed"):
        session.add_backend(NoopExecutionBackend("other"))


async def test_close_cancels_active_tasks(held: HeldBackend) -> None:
    session = Session([held])
    tasks = [ComputeTask(function=work) for _ in range(5)]
    await session.submit_tasks(tasks)
    await session.close()
    assert [task.state for task in tasks] == ["CANCELED"] * 5
    for task in tasks:
        with pytest.raises(TaskCancelledError):
            await task


async def test_close_wakes_waiters(held: HeldBackend) -> None:
    session = Session([held])
    task = good()
    await session.submit_tasks([task])
    waiting = asyncio.ensure_future(session.wait_tasks([task]))
    await asyncio.sleep(0)
    await session.close()
    assert await asyncio.wait_for(waiting, LIMIT_S) == [task]


async def test_close_is_idempotent() -> None:
    session = Session([NoopExecutionBackend()])
    await asyncio.gather(session.close(), session.close())
    await session.close()
    assert session.closed


async def test_close_waits_for_the_close_of_another_thread() -> None:
    closing, gate = threading.Event(), threading.Event()

    class Slow(NoopExecutionBackend):
        async def shutdown(self) -> None:
            closing.set()
            await asyncio.to_thread(gate.wait, 20)
            await super().shutdown()

    session = Session([Slow()])
    first = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(session.close())))
    assert await asyncio.to_thread(closing.wait, 20)
    second = asyncio.create_task(session.close())
    await asyncio.sleep(0)
    assert not second.done()
    gate.set()
    await asyncio.gather(first, second)
    assert session.closed


async def test_two_sessions_may_use_the_same_uids() -> None:
    async with Session([Recording("a")]) as one, Session([Recording("b")]) as two:
        tasks = [ComputeTask(function=work, uid="same"), ComputeTask(function=work, uid="same")]
        await asyncio.gather(one.submit_tasks(tasks[:1]), two.submit_tasks(tasks[1:]))
        assert [(await task).backend for task in tasks] == ["a", "b"]


def test_session_moves_to_new_loop_when_idle() -> None:
    session = Session([NoopExecutionBackend()])

    async def use() -> str:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        return str((await task).state)

    assert asyncio.run(use()) == "DONE"
    assert asyncio.run(use()) == "DONE"  # the first loop is closed and no task is active
    asyncio.run(session.close())


async def test_session_with_active_tasks_refuses_second_loop(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([good()])
        with pytest.raises(SessionError, match="tasks on another event loop"):
            await asyncio.to_thread(session.run, [ComputeTask(function=work)])


def test_close_on_new_loop_cancels_tasks_of_closed_loop() -> None:
    session = Session([HeldBackend()])
    task = good()
    asyncio.run(session.submit_tasks([task]))
    asyncio.run(session.close())
    assert task.state == "CANCELED"
