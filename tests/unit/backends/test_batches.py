import asyncio

import pytest

from rhapsody.backends.batches import Batches


class Desk:
    """Handles batches when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def handle(self, items: list[int]) -> list[object]:
        self.batches.append(items)
        await self.open.wait()
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


async def test_what_comes_in_one_pass_goes_together() -> None:
    desk = Desk()
    desk.open.set()
    batches: Batches[int, int] = Batches(desk.handle, 10)
    assert await asyncio.gather(*(batches.put(n) for n in range(3))) == [0, 2, 4]
    assert desk.batches == [[0, 1, 2]]


async def test_what_comes_meanwhile_waits_and_goes_together() -> None:
    desk = Desk()
    batches: Batches[int, int] = Batches(desk.handle, 10)
    first = batches.put(1)
    await asyncio.sleep(0)
    later = [batches.put(n) for n in (2, 3)]
    desk.open.set()
    await asyncio.gather(first, *later)
    assert desk.batches == [[1], [2, 3]]


async def test_a_batch_has_a_size() -> None:
    desk = Desk()
    desk.open.set()
    batches: Batches[int, int] = Batches(desk.handle, 2)
    await asyncio.gather(*(batches.put(n) for n in range(5)))
    assert desk.batches == [[0, 1], [2, 3], [4]]


async def test_several_are_in_hand_at_once() -> None:
    desk = Desk()
    batches: Batches[int, int] = Batches(desk.handle, 2, parallel=2)
    outcomes = [batches.put(n) for n in range(5)]
    await asyncio.sleep(0)
    assert desk.batches == [[0, 1], [2, 3]]
    desk.open.set()
    await asyncio.gather(*outcomes)


async def test_one_after_the_last_is_handled_as_well() -> None:
    desk = Desk()
    desk.open.set()
    batches: Batches[int, int] = Batches(desk.handle, 2)
    for n in range(50):
        assert await batches.put(n) == 2 * n


async def test_an_exception_is_raised_to_its_own_waiter() -> None:
    desk = Desk()
    desk.open.set()
    batches: Batches[int, int] = Batches(desk.handle, 10)
    good, bad = batches.put(1), batches.put(-1)
    assert await good == 2
    with pytest.raises(ValueError, match="-1"):
        await bad


async def test_what_is_taken_back_is_not_handled() -> None:
    desk = Desk()
    desk.open.set()
    batches: Batches[int, int] = Batches(desk.handle, 10)
    kept, taken_back = batches.put(1), batches.put(2)
    taken_back.cancel()
    assert await kept == 2
    assert desk.batches == [[1]]


async def test_closing_gives_everybody_the_error() -> None:
    desk = Desk()
    batches: Batches[int, int] = Batches(desk.handle, 1)
    in_hand, waiting = batches.put(1), batches.put(2)
    await asyncio.sleep(0)
    await batches.close(ConnectionError("gone"))
    for outcome in (in_hand, waiting, batches.put(3)):
        with pytest.raises(ConnectionError, match="gone"):
            await outcome
