"""Sessions cancel tasks."""

import asyncio

import pytest

from rhapsody import Session
from rhapsody.api import TaskCancelledError
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import good
from tests.support.waiting import LIMIT_S


@pytest.mark.parametrize("by_uid", [False, True])
async def test_awaiting_cancelled_task_raises_task_cancelled_error(
    held: HeldBackend, by_uid: bool
) -> None:
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks([task])
        await held.wait_entered()
        assert await session.cancel(task.uid if by_uid else task) is True
        with pytest.raises(TaskCancelledError, match="'good' was cancelled"):
            await task
        assert task.state == "CANCELED"
        assert held.cancelled == ["good"]


async def test_cancel_returns_false_for_ended_or_unknown_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.cancel(task) is False
        assert await session.cancel("unknown") is False
        assert task.state == "DONE"


async def test_cancelling_future_leaves_session_working(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = good()
        (future,) = await session.submit_tasks([task])
        future.cancel()
        held.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.wait_tasks([task], timeout=LIMIT_S)
