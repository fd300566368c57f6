import asyncio

import pytest

from rhapsody.backends.dask.batches import BatchQueue


class Handler:
    """Doubles the items of a batch once it is released; a negative item is an error."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.released = asyncio.Event()

    async def handle(self, items: list[int]) -> list[object]:
        self.batches.append(items)
        await self.released.wait()
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


async def test_items_of_one_pass_form_one_batch() -> None:
    handler = Handler()
    handler.released.set()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 10)
    assert await asyncio.gather(*(queue.put(n) for n in range(3))) == [0, 2, 4]
    assert handler.batches == [[0, 1, 2]]


async def test_items_put_while_busy_form_the_next_batch() -> None:
    handler = Handler()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 10)
    first = queue.put(1)
    await asyncio.sleep(0)
    later = [queue.put(n) for n in (2, 3)]
    handler.released.set()
    await asyncio.gather(first, *later)
    assert handler.batches == [[1], [2, 3]]


async def test_size_limits_a_batch() -> None:
    handler = Handler()
    handler.released.set()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 2)
    await asyncio.gather(*(queue.put(n) for n in range(5)))
    assert handler.batches == [[0, 1], [2, 3], [4]]


async def test_parallel_batches_are_handled_at_once() -> None:
    handler = Handler()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 2, parallel=2)
    outcomes = [queue.put(n) for n in range(5)]
    await asyncio.sleep(0)
    assert handler.batches == [[0, 1], [2, 3]]
    handler.released.set()
    await asyncio.gather(*outcomes)


async def test_item_put_after_the_last_batch_is_handled() -> None:
    handler = Handler()
    handler.released.set()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 2)
    for n in range(50):
        assert await queue.put(n) == 2 * n


async def test_exception_is_raised_to_its_own_caller() -> None:
    handler = Handler()
    handler.released.set()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 10)
    good, bad = queue.put(1), queue.put(-1)
    assert await good == 2
    with pytest.raises(ValueError, match="-1"):
        await bad


async def test_cancelled_item_is_not_handled() -> None:
    handler = Handler()
    handler.released.set()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 10)
    kept, cancelled = queue.put(1), queue.put(2)
    cancelled.cancel()
    assert await kept == 2
    assert handler.batches == [[1]]


async def test_close_raises_the_error_to_all_callers() -> None:
    handler = Handler()
    queue: BatchQueue[int, int] = BatchQueue(handler.handle, 1)
    active, waiting = queue.put(1), queue.put(2)
    await asyncio.sleep(0)
    await queue.close(ConnectionError("gone"))
    for outcome in (active, waiting, queue.put(3)):
        with pytest.raises(ConnectionError, match="gone"):
            await outcome
