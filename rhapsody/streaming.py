"""Streaming: a response's text, piece by piece, on its way to a callback or an iterator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

__all__ = ["OnText", "TextCallback", "called_here", "pieces_of"]

logger = logging.getLogger(__name__)

OnText = Callable[[str], Any]
"""Called with each piece of a response; the pieces joined are the response."""


class TextCallback:
    """A task's `on_text`, called until it raises: that is logged, and the task goes on.

    Args:
        uid: The task's uid.
        on_text: The callback.
    """

    def __init__(self, uid: str, on_text: OnText) -> None:
        self._uid = uid
        self._on_text: OnText | None = on_text

    def __call__(self, text: str) -> None:
        """Hand out a piece."""
        if self._on_text is None:
            return
        try:
            self._on_text(text)
        except Exception:
            logger.exception("on_text of task %s failed and is not called again", self._uid)
            self._on_text = None


async def pieces_of(answer: Callable[[OnText], Awaitable[Any]]) -> AsyncGenerator[str, None]:
    """Yield what a coroutine hands to a callback, then raise what it raised.

    Leaving this early cancels the coroutine and waits for its end.

    Args:
        answer: Called with the callback, which is for this loop only.
    """
    pieces: asyncio.Queue[str | None] = asyncio.Queue()  # no longer than the response
    answering = asyncio.ensure_future(answer(pieces.put_nowait))
    answering.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await answering
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        if not answering.cancelled():
            answering.exception()  # of no use to those who have left


@contextmanager
def called_here(
    tasks: Sequence[MutableMapping[str, Any]],
) -> Iterator[SimpleQueue[Callable[[], None] | None]]:
    """Have the callbacks of tasks called by a thread that blocks, and not on the service loop.

    Args:
        tasks: Tasks, of which some may have an `on_text`.

    Yields:
        The calls to make.
    """
    calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    given = [(task, task["on_text"]) for task in tasks if callable(task.get("on_text"))]
    for task, on_text in given:
        call = TextCallback(task.get("uid", "task"), on_text)
        task["on_text"] = partial(_put_call, calls, call)
    try:
        yield calls
    finally:
        for task, on_text in given:
            task["on_text"] = on_text


def _put_call(calls: SimpleQueue[Any], call: TextCallback, text: str) -> None:
    calls.put(partial(call, text))
