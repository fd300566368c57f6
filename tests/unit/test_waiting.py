"""Waiting with a time limit."""

import asyncio

import pytest

from rhapsody.waiting import done_within


async def test_awaitable_done_in_time_gives_true() -> None:
    assert await done_within(asyncio.sleep(0), 5)


async def test_awaitable_beyond_the_limit_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert not await done_within(endless(), 0.01)
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_no_limit_waits_until_done() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await done_within(event.wait(), None)


async def test_cancellation_of_the_caller_cancels_the_awaitable() -> None:
    inner = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(done_within(inner, None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inner.cancelled()


async def test_cancellation_together_with_the_result_is_not_lost() -> None:
    inner = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(done_within(inner, 5))
    await asyncio.sleep(0)
    inner.set_result(None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_exception_of_the_awaitable_counts_as_done() -> None:
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(ValueError("no"))
    assert await done_within(failed, 5)
    assert isinstance(failed.exception(), ValueError)
