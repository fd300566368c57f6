"""The bounded queue: its limit, and one wake-up for a burst from any thread."""

import asyncio
import threading

from rhapsody.telemetry.bounded_queue import BoundedQueue


async def test_burst_of_items_wakes_the_loop_once() -> None:
    wakes: list[int] = []
    queue: BoundedQueue[int] = BoundedQueue(10, lambda: wakes.append(len(queue)))
    queue.bind()
    for number in range(5):
        queue.put(number)
    await asyncio.sleep(0)
    assert wakes == [5]
    assert queue.take(3) == [0, 1, 2]
    assert queue.take(3) == [3, 4]


async def test_items_put_before_bind_wake_the_loop() -> None:
    woken = asyncio.Event()
    queue: BoundedQueue[int] = BoundedQueue(10, woken.set)
    queue.put(1)
    queue.bind()
    await asyncio.wait_for(woken.wait(), 5)
    assert queue.take(10) == [1]


async def test_items_from_threads_are_all_delivered() -> None:
    total, threads = 2000, 4
    got: list[int] = []
    complete = asyncio.Event()

    def on_items() -> None:
        got.extend(queue.take(len(queue)))
        if len(got) == total * threads:
            complete.set()

    queue: BoundedQueue[int] = BoundedQueue(total * threads, on_items)
    queue.bind()

    def put_all() -> None:
        for number in range(total):
            queue.put(number)

    writers = [threading.Thread(target=put_all) for _ in range(threads)]
    for writer in writers:
        writer.start()
    await asyncio.wait_for(complete.wait(), 20)
    for writer in writers:
        writer.join()
    assert sorted(got) == sorted(list(range(total)) * threads)


def test_items_beyond_the_limit_are_counted() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, lambda: None)
    for number in range(5):
        queue.put(number)
    assert (queue.take(10), queue.dropped) == ([0, 1], 3)


def test_closed_queue_drops_items() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, lambda: None)
    queue.close()
    queue.put(1)
    assert (len(queue), queue.dropped) == (0, 1)


def test_items_can_be_taken_after_the_loop_closed() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, lambda: None)

    async def bind() -> None:
        queue.bind()

    asyncio.run(bind())
    queue.put(1)
    assert queue.take(1) == [1]
