"""Which code a signal's exception may break into."""

import asyncio
import sys
import types

import pytest

from rhapsody.backends.workers.interrupts import interruptible_task


def frame_in_module(name: str) -> types.FrameType:
    module = types.ModuleType(name)
    module.__dict__["get_frame"] = sys._getframe
    exec("def here():\n    return get_frame()", module.__dict__)
    frame: types.FrameType = module.__dict__["here"]()
    return frame


@pytest.mark.parametrize("module", ["asyncio_x", "asyncio_x.tools", "__main__", "my.asyncio"])
async def test_user_code_is_interruptible(module: str) -> None:
    loop = asyncio.get_running_loop()
    assert interruptible_task(loop, frame_in_module(module)) is asyncio.current_task()


@pytest.mark.parametrize("module", ["asyncio", "asyncio.base_events"])
async def test_asyncio_code_is_not_interruptible(module: str) -> None:
    assert interruptible_task(asyncio.get_running_loop(), frame_in_module(module)) is None


def test_loop_without_running_task_is_not_interruptible() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert interruptible_task(loop, frame_in_module("__main__")) is None
    finally:
        loop.close()
