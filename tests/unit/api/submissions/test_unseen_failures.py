"""Unseen failures: what a session logs at its end, and what it does not log."""

import asyncio

import pytest

from rhapsody import Session
from rhapsody.backends import ConcurrentExecutionBackend


async def test_failures_that_nobody_asked_for_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    async with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:
        seen = session.submit(fail, "seen")
        unseen = [session.submit(fail, f"unseen {n}") for n in range(3)]
        await session.wait_tasks(session.submit(len, ""))
        with pytest.raises(ValueError, match="seen"):
            await seen
        del unseen
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [
        "3 tasks of session.submit() failed, and nobody asked for the result; the first: "
        "ValueError: unseen 0"
    ]


async def test_failures_after_the_one_that_map_raised_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        results = session.map(int, ["x", "y", "z"])
        await session.wait_tasks(session.submit(len, ""))
        with pytest.raises(ValueError, match="'x'"):
            await results
    assert "nobody asked" not in caplog.text


async def test_bounded_number_of_unseen_failures_is_kept(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.api.submissions.unseen_failures.MOST_FAILED", 2)
    async with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:
        tasks = [session.submit(int, "x") for _ in range(5)]
        await session.wait_tasks(session.submit(len, ""))
        del tasks
    assert "2 tasks of session.submit() failed" in caplog.text


async def test_failures_that_were_waited_for_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [session.submit(int, "x") for _ in range(3)]
        await session.wait_tasks(tasks[0])
        [waited], _ = await asyncio.wait([tasks[1]])
        if isinstance(waited, asyncio.Task):  # Python 3.10 wraps the task
            assert isinstance(waited.exception(), ValueError)
        async for _ in session.as_completed([tasks[2]]):
            pass
    assert "nobody asked" not in caplog.text
