"""A bounded number of requests in progress."""

import asyncio

import pytest

from rhapsody.inference.bulk.window import Window


async def test_window_waits_for_room_and_for_the_end() -> None:
    window, loop = Window(2), asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    window.add(first)
    await window.wait_room()
    window.add(second)
    waiting = asyncio.ensure_future(window.wait_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.set_result(None)
    await waiting
    second.cancel()
    await window.wait_all()


async def test_first_error_ends_the_run() -> None:
    window, loop = Window(2), asyncio.get_running_loop()
    future = loop.create_future()
    window.add(future)
    future.set_exception(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        await window.wait_all()
    window.fail(ValueError("later"))
    with pytest.raises(OSError, match="the disk is full"):
        await window.wait_room()
