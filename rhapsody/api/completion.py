"""Tasks in the order in which they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from typing import Any

from rhapsody.api.submissions.submission import AnyTask, Submission
from rhapsody.api.tasks import BaseTask
from rhapsody.api.tasks.base import runs_a_loop
from rhapsody.backends.core.nested_runs import WaitQueue
from rhapsody.errors import SessionError

__all__ = ["AsCompleted"]


class AsCompleted:
    """Yields tasks as they end, by `async for`, or by `for` in a thread without an event loop.

    Tasks may be added meanwhile. The iteration ends if it has yielded all tasks; after `add` a new
    one yields the added tasks.

    Args:
        find: Returns the submission of a task, or None if the task has ended.
        on_loop: Calls a function on the session's loop, and returns its result.
        tasks: The first tasks.
    """

    def __init__(
        self,
        find: Callable[[AnyTask], Submission | None],
        on_loop: Callable[[Callable[[], None]], None],
        tasks: Iterable[AnyTask],
    ) -> None:
        self._find = find
        self._on_loop = on_loop
        self._left = 0
        self._ended: WaitQueue | asyncio.Queue[AnyTask]
        self._ended = asyncio.Queue() if runs_a_loop() else WaitQueue()
        self.add(tasks)

    def add(self, tasks: Iterable[AnyTask] | AnyTask) -> None:
        """Add tasks to those that are yielded.

        Args:
            tasks: Submitted tasks, or a single one.

        Raises:
            SessionError: A task was not submitted to the session, or on another event loop.
        """
        added = [tasks] if isinstance(tasks, MutableMapping) else list(tasks)

        def watch() -> None:
            found = [(task, self._find(task)) for task in added]
            for task, submission in found:
                if submission is None:
                    self._ended.put_nowait(task)
                else:
                    submission.ended.add_done_callback(partial(self._on_end, task))
            self._left += len(added)

        self._on_loop(watch)
        if isinstance(self._ended, WaitQueue):
            for task in added:
                if isinstance(task, BaseTask):
                    task.offer_attempts_to(self._ended)

    def _on_end(self, task: AnyTask, _: asyncio.Future[None]) -> None:
        self._ended.put_nowait(task)

    def __aiter__(self) -> AsCompleted:
        return self

    async def __anext__(self) -> Any:
        if not isinstance(self._ended, asyncio.Queue):
            raise SessionError(
                "this as_completed() was called in a thread without an event loop; use 'for' there"
            )
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        try:
            return await self._ended.get()
        except BaseException:
            self._left += 1
            raise

    def __iter__(self) -> AsCompleted:
        return self

    def __next__(self) -> Any:
        if isinstance(self._ended, asyncio.Queue):
            raise SessionError(
                "'for' over as_completed() would block the event loop of this thread; use "
                "'async for'"
            )
        if not self._left:
            raise StopIteration
        self._left -= 1
        try:
            return self._ended.get()
        except BaseException:  # KeyboardInterrupt
            self._left += 1
            raise
