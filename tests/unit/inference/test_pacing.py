"""Pacing: how much work fits into one pass of the loop."""

import asyncio

from rhapsody.inference.pacing import Pace


async def work(pace: Pace, passes: list[int], now: list[int], units: int = 1) -> None:
    await pace.take(units)
    passes.append(now[0])


async def passes_of(*units: int, limit: int) -> list[int]:
    """Return the pass of the loop in which each part of the work was done."""
    pace, passes, now = Pace(limit), [], [0]  # type: ignore[var-annotated]
    working = [asyncio.ensure_future(work(pace, passes, now, one)) for one in units]
    while not all(task.done() for task in working):
        await asyncio.sleep(0)
        now[0] += 1
    return passes


async def test_work_is_spread_over_passes() -> None:
    passes = await passes_of(*[1] * 8, limit=2)
    assert [passes.count(one) for one in sorted(set(passes))] == [2, 2, 2, 2]


async def test_large_part_gets_a_pass_of_its_own() -> None:
    assert await passes_of(1, 50, 1, 1, limit=2) == [0, 0, 1, 2]


async def test_loop_runs_while_one_coroutine_works() -> None:
    pace, passes = Pace(4), 0

    async def count() -> None:
        nonlocal passes
        while True:
            await asyncio.sleep(0)
            passes += 1

    counting = asyncio.create_task(count())
    for _ in range(40):
        await pace.take()
    counting.cancel()
    assert passes >= 8
