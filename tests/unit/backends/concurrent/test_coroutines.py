import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rhapsody.backends.concurrent.coroutines import CoroutineRun


def run(function: Callable[[], Any]) -> Any:
    return CoroutineRun().run(function(), lambda: True)


async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_functions_that_leave_nothing_share_a_loop() -> None:
    assert len({run(loop) for _ in range(5)}) == 1


def test_function_has_a_current_task() -> None:
    async def task() -> bool:
        return asyncio.current_task() is not None

    assert run(task)


class Left:
    """What functions leave behind on their loop."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.generator: AsyncIterator[int] | None = None

    async def callback(self) -> None:
        asyncio.get_running_loop().call_soon(self.called.append, "callback")

    async def timer(self) -> None:
        asyncio.get_running_loop().call_later(0, self.called.append, "timer")

    async def task(self) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.called.append("task cancelled")
                raise

        self.kept = asyncio.create_task(wait())
        await asyncio.sleep(0)

    async def thread(self) -> None:
        await asyncio.to_thread(int)

    async def generate(self) -> None:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                self.called.append("generator closed")

        self.generator = numbers()
        async for _ in self.generator:
            break

    async def debug(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)


@pytest.mark.parametrize("name", ["callback", "timer", "task", "thread", "generate", "debug"])
def test_loop_on_which_something_was_left_is_not_used_again(name: str) -> None:
    left = Left()
    before = run(loop)
    run(getattr(left, name))
    called = list(left.called)
    assert run(loop) is not before
    assert left.called == called  # nothing runs within a later function


def test_task_and_generator_that_were_left_are_ended() -> None:
    left = Left()
    run(left.task)
    run(left.generate)
    assert left.called == ["task cancelled", "generator closed"]


def test_exception_of_function_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(fail)
    assert run(loop) is run(loop)


def test_function_of_cancelled_task_is_cancelled_at_its_first_await() -> None:
    reached = []

    async def wait() -> None:
        reached.append("start")
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        CoroutineRun().run(wait(), lambda: False)
    assert reached in ([], ["start"])


def test_other_thread_cancels_function() -> None:
    started = threading.Event()
    call = CoroutineRun()
    ends: list[str] = []

    async def wait() -> None:
        started.set()
        await asyncio.sleep(60)

    def in_thread() -> None:
        try:
            call.run(wait(), lambda: True)
        except asyncio.CancelledError:
            ends.append("cancelled")

    thread = threading.Thread(target=in_thread)
    thread.start()
    assert started.wait(30)
    call.cancel()
    thread.join(30)
    assert ends == ["cancelled"]


def test_cancel_after_the_end_does_nothing() -> None:
    call = CoroutineRun()
    call.run(loop(), lambda: True)
    call.cancel()
    assert run(loop)
