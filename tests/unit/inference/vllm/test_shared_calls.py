"""Calls that are shared while they run."""

import asyncio

import pytest

from rhapsody.inference.vllm.shared_calls import SharedCalls


class Calls:
    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def call(self) -> int:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.begun


async def test_callers_at_the_same_time_share_a_call_and_later_ones_do_not() -> None:
    shared, calls = SharedCalls(), Calls()
    callers = [asyncio.create_task(shared.get("a", calls.call)) for _ in range(3)]
    other = asyncio.create_task(shared.get("b", calls.call))
    await asyncio.sleep(0.01)
    assert calls.begun == 2
    calls.go_on.set()
    assert await asyncio.gather(*callers, other) == [2, 2, 2, 2]
    assert await shared.get("a", calls.call) == 3


async def test_call_is_cancelled_with_its_last_caller() -> None:
    shared, calls = SharedCalls(), Calls()
    first, second = (asyncio.create_task(shared.get("a", calls.call)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    assert calls.cancelled == 0
    second.cancel()
    await asyncio.wait([second])
    await asyncio.sleep(0.01)
    assert calls.cancelled == 1


async def test_caller_after_a_cancelled_call_makes_a_new_one() -> None:
    shared, calls = SharedCalls(), Calls()
    first = asyncio.create_task(shared.get("a", calls.call))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0)
    calls.go_on.set()
    assert await shared.get("a", calls.call) == 2


async def test_every_caller_gets_the_error_of_a_call() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    shared = SharedCalls()
    errors = await asyncio.gather(*(shared.get(1, fail) for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in errors] == ["no", "no"]
    with pytest.raises(ValueError, match="no"):
        await shared.get(1, fail)
