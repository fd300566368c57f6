"""Sessions whose tasks were submitted on another event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError
from tests.support.held import HeldBackend
from tests.support.sessions import good
from tests.support.waiting import LIMIT_S


async def wait_tasks(session: Session, task: ComputeTask) -> Any:
    return await session.wait_tasks(task)


async def cancel(session: Session, task: ComputeTask) -> Any:
    return await session.cancel(task)


async def await_task(_: Session, task: ComputeTask) -> Any:
    return await task


@pytest.mark.parametrize("use", [wait_tasks, cancel, await_task], ids=lambda use: use.__name__)
def test_task_of_closed_loop_is_refused(
    use: Callable[[Session, ComputeTask], Awaitable[Any]],
) -> None:
    held = HeldBackend()
    session, task = Session([held]), good()
    asyncio.run(session.submit_tasks(task))
    asyncio.run(held.wait_entered())
    with pytest.raises(SessionError, match=r"task good .* on an event loop that is closed"):
        asyncio.run(asyncio.wait_for(use(session, task), LIMIT_S))
    asyncio.run(session.close())
    assert task.state == "CANCELED"
    assert held.cancelled == ["good"]


@pytest.mark.parametrize("use", [wait_tasks, await_task], ids=lambda use: use.__name__)
async def test_waiting_on_another_loop_is_refused(
    use: Callable[[Session, ComputeTask], Awaitable[Any]],
) -> None:
    async with Session([HeldBackend()]) as session:
        task = good()
        await session.submit_tasks(task)
        with pytest.raises(SessionError, match="task good was submitted on another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(use(session, task)))  # type: ignore[arg-type]


async def test_ended_task_can_be_awaited_on_another_loop() -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks(task)
        held.release()
        await task
        assert await asyncio.to_thread(lambda: asyncio.run(await_task(session, task))) is task
