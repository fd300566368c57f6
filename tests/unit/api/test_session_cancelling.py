"""Cancelling a session's tasks."""

import asyncio

import pytest

from rhapsody import Session
from rhapsody.api import TaskCancelledError
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import good
from tests.support.waiting import LIMIT_S


@pytest.mark.parametrize("by_uid", [False, True])
async def test_a_cancelled_task_raises_that_it_was(held: HeldBackend, by_uid: bool) -> None:
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks([task])
        await held.has_begun()
        assert await session.cancel(task.uid if by_uid else task) is True
        with pytest.raises(TaskCancelledError, match="'good' was cancelled"):
            await task
        assert task.state == "CANCELED"
        assert held.cancelled == ["good"]


async def test_cancelling_what_ended_or_is_unknown_is_false() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.cancel(task) is False
        assert await session.cancel("unknown") is False
        assert task.state == "DONE"


async def test_cancelling_the_future_does_not_upset_the_session(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = good()
        (future,) = await session.submit_tasks([task])
        future.cancel()
        held.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.wait_tasks([task], timeout=LIMIT_S)
