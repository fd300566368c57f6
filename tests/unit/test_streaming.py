"""Streamed text for a callback, an iterator, and a blocked thread."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any

import pytest

from rhapsody.streaming import OnText, TextCallback, queued_callbacks, stream_pieces


def boom(text: str) -> None:
    raise ValueError(f"no {text}")


async def read(pieces: AsyncGenerator[str, None]) -> list[str]:
    return [piece async for piece in pieces]


async def test_stream_pieces_yields_texts_of_the_callback() -> None:
    async def run(on_text: OnText) -> None:
        on_text("a")
        await asyncio.sleep(0)
        on_text("b")

    assert await read(stream_pieces(run)) == ["a", "b"]


async def test_stream_pieces_raises_after_the_last_piece() -> None:
    async def run(on_text: OnText) -> None:
        on_text("a")
        raise ValueError("intended")

    pieces = stream_pieces(run)
    assert await anext(pieces) == "a"
    with pytest.raises(ValueError, match="intended"):
        await anext(pieces)


async def test_closing_the_stream_waits_for_the_coroutine() -> None:
    ended = []

    async def run(on_text: OnText) -> None:
        on_text("a")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async with aclosing(stream_pieces(run)) as pieces:
        assert await anext(pieces) == "a"
    assert ended == [True]


async def test_error_after_closing_the_stream_is_not_logged() -> None:
    async def run(on_text: OnText) -> None:
        on_text("a")
        raise ValueError("not read")

    async with aclosing(stream_pieces(run)) as pieces:
        await anext(pieces)  # the test session fails on what asyncio logs


def test_failing_callback_is_logged_and_not_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = TextCallback("task.1", boom)
    callback("one")
    callback("two")
    [record] = caplog.records
    assert record.message == "on_text of task task.1 failed and is not called again"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no one"


def test_queued_callbacks_are_restored_after_the_calls() -> None:
    texts: list[str] = []
    on_text = texts.append
    task: dict[str, Any] = {"uid": "a", "on_text": on_text}
    calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
    with queued_callbacks([task, {"uid": "b"}], calls.put):
        task["on_text"]("one")
        assert texts == []
        calls.get_nowait()()
    assert texts == ["one"]
    assert task["on_text"] is on_text
