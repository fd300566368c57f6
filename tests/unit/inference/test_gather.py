"""Many coroutines at once: their outcomes, and the loop meanwhile."""

import asyncio

import pytest

from rhapsody.inference.gather import gather_outcomes
from rhapsody.inference.pacing import UNITS_PER_PASS
from tests.support.waiting import until


async def echo(value: int) -> int:
    if value < 0:
        raise ValueError(str(value))
    return value


async def test_results_and_errors_are_in_order() -> None:
    one, error, three = await gather_outcomes(map(echo, [1, -2, 3]))
    assert (one, three) == (1, 3)
    assert isinstance(error, ValueError)


async def test_no_coroutines_have_no_outcomes() -> None:
    assert await gather_outcomes([]) == []


class Passes:
    """Counts the passes of the loop while its block runs, and the most calls of `note` in one."""

    async def __aenter__(self) -> "Passes":
        self.most = self._in_pass = 0
        self._counting = asyncio.create_task(self._count())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._counting.cancel()
        await asyncio.wait([self._counting])

    def note(self) -> None:
        self._in_pass += 1
        self.most = max(self.most, self._in_pass)

    async def _count(self) -> None:
        while True:
            self._in_pass = 0
            await asyncio.sleep(0)


async def test_few_coroutines_start_in_one_pass() -> None:
    async with Passes() as passes:

        async def work(number: int) -> int:
            passes.note()
            return number

        assert await gather_outcomes(map(work, range(2000))) == list(range(2000))
    assert passes.most <= 2 * UNITS_PER_PASS


async def test_few_coroutines_are_cancelled_in_one_pass() -> None:
    async with Passes() as passes:

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                passes.note()

        outcomes = await gather_outcomes((work() for _ in range(2000)), timeout=0.01)
    assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
    assert passes.most <= 2 * UNITS_PER_PASS


async def test_second_cancel_reaches_the_coroutines_that_are_left() -> None:
    begun = ended = 0

    async def work() -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    gathering = asyncio.get_running_loop().create_task(gather_outcomes(work() for _ in range(1000)))
    await until(lambda: begun == 1000)
    gathering.cancel()
    await asyncio.sleep(0)
    gathering.cancel()
    await asyncio.wait([gathering])
    await until(lambda: ended == 1000)


async def test_timeout_cancels_unfinished_coroutines() -> None:
    fast, slow = await gather_outcomes([echo(1), asyncio.Event().wait()], timeout=0.01)
    assert fast == 1
    assert isinstance(slow, asyncio.CancelledError)


async def test_cancel_reaches_all_coroutines() -> None:
    tasks: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(gather_outcomes(work() for _ in range(3)), 0.01)
    assert [task is not None and task.cancelled() for task in tasks] == [True] * 3


async def test_few_coroutines_run_at_once() -> None:
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    assert await gather_outcomes(map(work, range(50)), at_once=4) == list(range(50))
    assert most == 4


async def test_timeout_counts_while_coroutines_wait_for_room() -> None:
    started = 0

    async def work() -> None:
        nonlocal started
        started += 1
        await asyncio.Event().wait()

    outcomes = await gather_outcomes((work() for _ in range(5)), timeout=0.01, at_once=2)
    assert started == 2
    assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
    assert len(outcomes) == 5
