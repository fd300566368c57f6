"""One owner's time with a backend, and the way results take to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from rhapsody.backends.history import TaskHistory
from rhapsody.backends.protocol import Task, TaskCallback

__all__ = ["Attachment", "ignore"]

logger = logging.getLogger(__name__)

DELIVERIES_PER_PASS = 512
"""Results handed to an owner before its loop gets to do something else."""


class Attachment:
    """One owner's time with a backend: its callback, its loop and what waits to be delivered.

    Args:
        callback: What states are reported to.
        history: Takes note of the tasks; one of its own where None.
    """

    __slots__ = (
        "__weakref__",
        "_callback",
        "history",
        "loop",
        "outbox",
        "owner",
        "released",
        "waking",
    )

    def __init__(self, callback: TaskCallback, history: TaskHistory | None = None) -> None:
        self.replace_callback(callback)
        self.history = history or TaskHistory()
        self.loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self.loop = asyncio.get_running_loop()
        self.outbox: deque[tuple[Task, dict[str, Any], str] | Callable[[], None]] = deque()
        self.waking = False
        self.released = False

    def replace_callback(self, callback: TaskCallback) -> None:
        """Report to another callback from now on, whose owner this attachment is."""
        self._callback: Any = callback
        self.owner: weakref.ref[Any] | None = None
        owner = getattr(callback, "__self__", None)
        if owner is not None:
            # An owner is never kept alive by its backend. Built-in objects such as a list (whose
            # `append` somebody registered) take no weak reference: they own nothing.
            with contextlib.suppress(TypeError):
                self._callback = weakref.WeakMethod(callback)
                self.owner = weakref.ref(owner)

    def silence(self) -> None:
        """Tell the owner nothing from now on, not even what waits to be delivered."""
        self._callback, self.owner = None, None

    def is_same_owner(self, callback: TaskCallback) -> bool:
        """Whether a callback is the present owner's, or nobody's, as the present one is."""
        new = getattr(callback, "__self__", None)
        if self.released:
            return False
        if self.owner is None:
            return new is None
        return new is not None and self.owner() is new

    @property
    def callback(self) -> TaskCallback | None:
        """The registered callback, or None where its owner is gone or is to be told nothing."""
        if self.owner is None:
            return self._callback  # type: ignore[no-any-return]
        return self._callback()  # type: ignore[no-any-return]

    def open_owner(self) -> Any:
        """Return the owner if it is still open, else None.

        AsyncFlow's engine shows that it was shut down by `_shutdown_event` (0.6), a session by
        `closed`. One whose loop is closed can never be told anything again.
        """
        owner = self.owner() if self.owner is not None and not self.released else None
        if owner is None or (self.loop is not None and self.loop.is_closed()):
            return None
        event = getattr(owner, "_shutdown_event", None)
        ended = event.is_set() if event is not None else getattr(owner, "closed", False)
        return None if ended else owner

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this loop from now on; what waited for a closed one comes along."""
        if self.loop is loop:
            return
        self.loop = loop
        self.waking = bool(self.outbox)
        if self.waking:
            loop.call_soon(self._drain)

    def post(self, task: Task, fields: dict[str, Any], state: str) -> None:
        """Queue a state for the owner and wake its loop once, from any thread."""
        self._put((task, fields, state))

    def call(self, func: Callable[[], None]) -> None:
        """Queue a call for the owner's loop, in order with the states, from any thread."""
        self._put(func)

    def _put(self, entry: tuple[Task, dict[str, Any], str] | Callable[[], None]) -> None:
        self.outbox.append(entry)
        if self.waking or self.loop is None:
            return
        self.waking = True
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the owner's loop has been closed: it waits for another one
            self.waking = False

    async def delivered(self) -> None:
        """Return once the owner has been told everything, if it is the owner's loop that waits."""
        while self.outbox and self.loop is asyncio.get_running_loop():
            self._drain()
            await asyncio.sleep(0)

    def _drain(self) -> None:
        self.waking = False
        callback = self.callback
        for _ in range(min(len(self.outbox), DELIVERIES_PER_PASS)):
            entry = self.outbox.popleft()
            if callback is None:
                continue
            if callable(entry):
                entry()
                continue
            task, fields, state = entry
            try:
                task.update(fields)
                callback(task, state)
            except Exception:
                logger.exception("the owner's callback failed on task %s", task.get("uid"))
        if self.outbox and not self.waking and self.loop is not None:
            self.waking = True
            self.loop.call_soon(self._drain)


def ignore(task: Any, state: str) -> None:
    """Stand in for a callback where there is no owner."""
