"""Admission: the limit of pending prompts, and the order in which prompts are admitted."""

import asyncio

import pytest

from rhapsody.errors import OverloadedError
from rhapsody.inference.admission import Admission


async def waiting_for_room(admission: Admission, number: int) -> list[asyncio.Task[None]]:
    """Start tasks that wait for admission."""
    tasks = [asyncio.create_task(admission.enter()) for _ in range(number)]
    await asyncio.sleep(0)  # each runs up to its wait
    return tasks


async def test_enter_admits_below_limit() -> None:
    admission = Admission(2)
    await admission.enter()
    await admission.enter()
    assert admission.pending == 2


async def test_enter_waits_at_limit() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    assert not waiting.done()
    admission.leave()
    await asyncio.wait_for(waiting, 5)
    assert admission.pending == 1


async def test_waiting_prompts_are_admitted_in_order() -> None:
    admission = Admission(1)
    await admission.enter()
    order: list[int] = []

    async def enter(number: int) -> None:
        await admission.enter()
        order.append(number)
        admission.leave()

    waiting = [asyncio.create_task(enter(number)) for number in range(5)]
    await asyncio.sleep(0)  # each runs up to its wait
    admission.leave()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert order == [0, 1, 2, 3, 4]


async def test_try_enter_over_limit_raises_with_numbers() -> None:
    admission = Admission(3)
    admission.try_enter(2)
    with pytest.raises(OverloadedError) as refused:
        admission.try_enter(2)
    assert (refused.value.pending, refused.value.limit) == (2, 3)
    assert admission.pending == 2


async def test_try_enter_does_not_overtake_waiting_prompts() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    with pytest.raises(OverloadedError):
        admission.try_enter()
    admission.leave()
    await waiting
    admission.leave()
    admission.try_enter()


async def test_cancelled_waiter_takes_no_place() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    admission.leave()
    assert admission.pending == 0
    admission.try_enter()


async def test_place_of_cancelled_waiter_goes_to_next() -> None:
    admission = Admission(1)
    await admission.enter()
    first, second = await waiting_for_room(admission, 2)
    admission.leave()  # gives the place to the first, which is cancelled before it takes it
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert admission.pending == 1


async def test_leave_admits_as_many_as_left() -> None:
    admission = Admission(4)
    admission.try_enter(4)
    waiting = await waiting_for_room(admission, 6)
    admission.leave(4)
    done, _ = await asyncio.wait(waiting, timeout=5, return_when="FIRST_COMPLETED")
    assert len(done) == 4
    assert admission.pending == 4
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_wait_empty_returns_after_last_prompt() -> None:
    admission = Admission(3)
    admission.try_enter(2)
    waiting = asyncio.ensure_future(admission.wait_empty())
    admission.leave()
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.leave()
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(admission.wait_empty(), 5)
