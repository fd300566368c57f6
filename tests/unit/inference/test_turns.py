"""Many coroutines at once: their outcomes, and the loop's turns in between."""

import asyncio

import pytest

from rhapsody.inference import turns
from rhapsody.inference.turns import outcomes_of


async def echo(value: int) -> int:
    if value < 0:
        raise ValueError(str(value))
    return value


async def test_results_and_errors_come_in_order() -> None:
    one, error, three = await outcomes_of(map(echo, [1, -2, 3]))
    assert (one, three) == (1, 3)
    assert isinstance(error, ValueError)


async def test_none_at_all_have_no_outcomes() -> None:
    assert await outcomes_of([]) == []


async def test_the_loop_has_turns_while_they_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STARTS_PER_TURN", 2)
    seen: list[int] = []
    task = asyncio.create_task(outcomes_of(echo(seen.append(i) or i) for i in range(6)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [0, 1, 2, 3]
    assert await task == [0, 1, 2, 3, 4, 5]


async def test_what_is_too_slow_is_cancelled() -> None:
    fast, slow = await outcomes_of([echo(1), asyncio.Event().wait()], timeout=0.01)
    assert fast == 1
    assert isinstance(slow, asyncio.CancelledError)


async def test_cancelling_it_cancels_them() -> None:
    tasks: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(outcomes_of(work() for _ in range(3)), 0.01)
    assert [task is not None and task.cancelled() for task in tasks] == [True] * 3
