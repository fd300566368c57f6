"""Text on its way to a callback, to an iterator, and to a thread that blocks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from rhapsody.streaming import OnText, TextCallback, called_here, pieces_of


def boom(text: str) -> None:
    raise ValueError(f"no {text}")


async def read(pieces: AsyncGenerator[str, None]) -> list[str]:
    return [piece async for piece in pieces]


# -- iterators --------------------------------------------------------------------------------


async def test_pieces_are_those_of_the_callback() -> None:
    async def answer(on_text: OnText) -> None:
        on_text("a")
        await asyncio.sleep(0)
        on_text("b")

    assert await read(pieces_of(answer)) == ["a", "b"]


async def test_an_error_comes_after_the_pieces_before_it() -> None:
    async def answer(on_text: OnText) -> None:
        on_text("a")
        raise ValueError("intended")

    pieces = pieces_of(answer)
    assert await anext(pieces) == "a"
    with pytest.raises(ValueError, match="intended"):
        await anext(pieces)


async def test_who_leaves_early_waits_for_the_end_of_the_work() -> None:
    ended = []

    async def answer(on_text: OnText) -> None:
        on_text("a")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async with aclosing(pieces_of(answer)) as pieces:
        assert await anext(pieces) == "a"
    assert ended == [True]


async def test_an_error_that_nobody_reads_any_more_is_not_complained_about() -> None:
    async def answer(on_text: OnText) -> None:
        on_text("a")
        raise ValueError("nobody looks")

    async with aclosing(pieces_of(answer)) as pieces:
        await anext(pieces)  # the test session fails on what asyncio logs


# -- callbacks --------------------------------------------------------------------------------


def test_a_callback_that_raises_is_logged_and_not_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = TextCallback("task.1", boom)
    callback("one")
    callback("two")
    [record] = caplog.records
    assert record.message == "on_text of task task.1 failed and is not called again"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no one"


def test_a_blocked_thread_gets_the_calls_and_tasks_get_their_callbacks_back() -> None:
    texts: list[str] = []
    on_text = texts.append
    task: dict[str, Any] = {"uid": "a", "on_text": on_text}
    with called_here([task, {"uid": "b"}]) as calls:
        task["on_text"]("one")
        assert texts == []
        call = calls.get_nowait()
        assert call is not None
        call()
    assert texts == ["one"]
    assert task["on_text"] is on_text
