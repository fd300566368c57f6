"""The inbox: bounded, and one wake-up for each burst from any thread."""

import asyncio
import threading

from rhapsody.telemetry.inbox import Inbox


async def test_one_burst_wakes_the_loop_once() -> None:
    wakes: list[int] = []
    inbox: Inbox[int] = Inbox(10, lambda: wakes.append(len(inbox)))
    inbox.bind()
    for number in range(5):
        inbox.put(number)
    await asyncio.sleep(0)
    assert wakes == [5]
    assert inbox.take(3) == [0, 1, 2]
    assert inbox.take(3) == [3, 4]


async def test_what_was_put_before_the_loop_is_not_lost() -> None:
    woken = asyncio.Event()
    inbox: Inbox[int] = Inbox(10, woken.set)
    inbox.put(1)
    inbox.bind()
    await asyncio.wait_for(woken.wait(), 5)
    assert inbox.take(10) == [1]


async def test_threads_lose_nothing() -> None:
    total, threads = 2000, 4
    got: list[int] = []
    complete = asyncio.Event()

    def on_items() -> None:
        got.extend(inbox.take(len(inbox)))
        if len(got) == total * threads:
            complete.set()

    inbox: Inbox[int] = Inbox(total * threads, on_items)
    inbox.bind()

    def put_all() -> None:
        for number in range(total):
            inbox.put(number)

    writers = [threading.Thread(target=put_all) for _ in range(threads)]
    for writer in writers:
        writer.start()
    await asyncio.wait_for(complete.wait(), 20)
    for writer in writers:
        writer.join()
    assert sorted(got) == sorted(list(range(total)) * threads)


def test_what_does_not_fit_is_counted() -> None:
    inbox: Inbox[int] = Inbox(2, lambda: None)
    for number in range(5):
        inbox.put(number)
    assert (inbox.take(10), inbox.dropped) == ([0, 1], 3)


def test_a_closed_inbox_takes_nothing() -> None:
    inbox: Inbox[int] = Inbox(2, lambda: None)
    inbox.close()
    inbox.put(1)
    assert (len(inbox), inbox.dropped) == (0, 1)


def test_a_closed_loop_leaves_the_items_to_be_read() -> None:
    inbox: Inbox[int] = Inbox(2, lambda: None)

    async def bind() -> None:
        inbox.bind()

    asyncio.run(bind())
    inbox.put(1)
    assert inbox.take(1) == [1]
