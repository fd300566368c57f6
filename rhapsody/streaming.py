"""Streaming: the text of a response, piece by piece, for a callback or an iterator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["OnText", "TextCallback", "queued_callbacks", "stream_pieces"]

logger = logging.getLogger(__name__)

OnText = Callable[[str], Any]
"""Called with each piece of a response's text; joined, the pieces are the whole text."""


class TextCallback:
    """A task's `on_text`, which is called until it raises; the task itself continues.

    Args:
        uid: The task's uid.
        on_text: The callback.
    """

    def __init__(self, uid: str, on_text: OnText) -> None:
        self._uid = uid
        self._on_text: OnText | None = on_text

    def __call__(self, text: str) -> None:
        """Call the callback with a piece of text; an exception is logged."""
        if self._on_text is None:
            return
        try:
            self._on_text(text)
        except Exception:
            logger.exception("on_text of task %s failed and is not called again", self._uid)
            self._on_text = None


async def stream_pieces(run: Callable[[OnText], Awaitable[Any]]) -> AsyncGenerator[str, None]:
    """Run a coroutine and yield the texts that it passes to a callback.

    An exception of the coroutine is raised after the last piece. Closing the generator early
    cancels the coroutine and waits for its end.

    Args:
        run: Called with the callback, which may be used only on this event loop.
    """
    pieces: asyncio.Queue[str | None] = asyncio.Queue()  # bounded by the response
    running = asyncio.ensure_future(run(pieces.put_nowait))
    running.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # retrieved, so that asyncio does not log it


@contextmanager
def queued_callbacks(
    tasks: Sequence[MutableMapping[str, Any]], put: Callable[[Callable[[], Any]], None]
) -> Iterator[None]:
    """Queue calls of the tasks' `on_text` for a blocked thread, which then makes the calls.

    Args:
        tasks: The tasks; not all need an `on_text`.
        put: Puts a call into the queue.
    """
    mappings = [task for task in tasks if isinstance(task, MutableMapping)]  # others are refused
    given = [(task, task["on_text"]) for task in mappings if callable(task.get("on_text"))]
    for task, on_text in given:
        task["on_text"] = partial(_put_call, put, TextCallback(task.get("uid", "task"), on_text))
    try:
        yield
    finally:
        for task, on_text in given:
            task["on_text"] = on_text


def _put_call(put: Callable[[Callable[[], Any]], None], call: TextCallback, text: str) -> None:
    put(partial(call, text))
