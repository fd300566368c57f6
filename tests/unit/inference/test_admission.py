"""Admission: how many prompts are inside, and whose turn is next."""

import asyncio

import pytest

from rhapsody.api.errors import OverloadedError
from rhapsody.inference.admission import Admission


async def waiting_for_room(admission: Admission, number: int) -> list[asyncio.Task[None]]:
    """Tasks that stand in the queue."""
    tasks = [asyncio.create_task(admission.enter()) for _ in range(number)]
    await asyncio.sleep(0)  # each runs up to its wait
    return tasks


async def test_prompts_go_in_while_there_is_room() -> None:
    admission = Admission(2)
    await admission.enter()
    await admission.enter()
    assert admission.pending == 2


async def test_the_next_one_waits_until_one_leaves() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    assert not waiting.done()
    admission.leave()
    await asyncio.wait_for(waiting, 5)
    assert admission.pending == 1


async def test_first_come_first_served() -> None:
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


async def test_who_cannot_wait_is_refused_with_the_numbers() -> None:
    admission = Admission(3)
    admission.try_enter(2)
    with pytest.raises(OverloadedError) as refused:
        admission.try_enter(2)
    assert (refused.value.pending, refused.value.limit) == (2, 3)
    assert admission.pending == 2


async def test_nobody_jumps_the_queue() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    with pytest.raises(OverloadedError):
        admission.try_enter()
    admission.leave()
    await waiting
    admission.leave()
    admission.try_enter()


async def test_who_gives_up_waiting_takes_no_place() -> None:
    admission = Admission(1)
    await admission.enter()
    [waiting] = await waiting_for_room(admission, 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    admission.leave()
    assert admission.pending == 0
    admission.try_enter()


async def test_a_place_handed_to_someone_who_gave_up_goes_to_the_next() -> None:
    admission = Admission(1)
    await admission.enter()
    first, second = await waiting_for_room(admission, 2)
    admission.leave()  # hands the place to the first, which has no chance to take it
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert admission.pending == 1


async def test_leaving_together_lets_as_many_in() -> None:
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


async def test_who_waits_for_the_last_one_hears_of_it() -> None:
    admission = Admission(3)
    admission.try_enter(2)
    waiting = asyncio.ensure_future(admission.until_empty())
    admission.leave()
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.leave()
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(admission.until_empty(), 5)
