"""The attachment of one owner to a backend: its callback, and the delivery of results to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from rhapsody.backends.core.history import TaskHistory
from rhapsody.backends.protocol import Task, TaskCallback

__all__ = ["Attachment", "ignore"]

logger = logging.getLogger(__name__)

DELIVERIES_PER_PASS = 512
"""Results delivered to an owner in one pass of its loop."""

GATHER_SECONDS = 0.001
"""How long results gather if many tasks are active. Each wake-up of the loop passes the interpreter
lock to and fro, which takes longer than a short function."""


class Attachment:
    """The attachment of one owner: its callback, its loop and the results to deliver.

    Args:
        callback: Called with each task and its new state.
        history: Records the tasks. None: a new history.
    """

    __slots__ = (
        "__weakref__",
        "_callback",
        "detached",
        "history",
        "loop",
        "outbox",
        "owner",
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
        self.detached = False

    def replace_callback(self, callback: TaskCallback) -> None:
        """Replace the callback; the object that a bound method belongs to is the owner."""
        self._callback: Any = callback
        self.owner: weakref.ref[Any] | None = None
        owner = getattr(callback, "__self__", None)
        if owner is not None:
            # A backend never keeps its owner alive. Built-in objects, such as a list whose `append`
            # is the callback, take no weak reference and count as no owner.
            with contextlib.suppress(TypeError):
                self._callback = weakref.WeakMethod(callback)
                self.owner = weakref.ref(owner)

    def close(self) -> None:
        """Deliver nothing to the owner from now on, not even the queued results."""
        self._callback, self.owner = None, None

    def is_same_owner(self, callback: TaskCallback) -> bool:
        """Whether a callback has the current owner, or both have none."""
        new = getattr(callback, "__self__", None)
        if self.detached:
            return False
        if self.owner is None:
            return new is None
        return new is not None and self.owner() is new

    @property
    def callback(self) -> TaskCallback | None:
        """The registered callback; None if its owner no longer exists, or after `close`."""
        if self.owner is None:
            return self._callback  # type: ignore[no-any-return]
        return self._callback()  # type: ignore[no-any-return]

    def open_owner(self) -> Any:
        """Return the owner if it is still open, else None.

        AsyncFlow's engine shows its shutdown by `_shutdown_event` (0.6), a session by `closed`. An
        owner whose loop is closed cannot receive results, and counts as closed.
        """
        owner = self.owner() if self.owner is not None and not self.detached else None
        if owner is None or (self.loop is not None and self.loop.is_closed()):
            return None
        event = getattr(owner, "_shutdown_event", None)
        ended = event.is_set() if event is not None else getattr(owner, "closed", False)
        return None if ended else owner

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this loop from now on, including the results queued for an earlier loop."""
        if self.loop is loop:
            return
        self.loop = loop
        self.waking = bool(self.outbox)
        if self.waking:
            loop.call_soon(self._drain)

    def post(self, task: Task, fields: dict[str, Any], state: str) -> None:
        """Queue a state for the owner and wake its loop once; thread-safe."""
        self._put((task, fields, state))

    def call(self, func: Callable[[], None]) -> None:
        """Queue a call for the owner's loop, in order with the states; thread-safe."""
        self._put(func)

    def _put(self, entry: tuple[Task, dict[str, Any], str] | Callable[[], None]) -> None:
        self.outbox.append(entry)
        if self.waking or self.loop is None:
            return
        self.waking = True
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the owner's loop is closed; the entry waits for the next loop
            self.waking = False

    async def delivered(self) -> None:
        """Deliver all queued results, if called on the owner's loop; elsewhere return at once."""
        while self.outbox and self.loop is asyncio.get_running_loop():
            self._drain()
            await asyncio.sleep(0)

    def _drain(self) -> None:
        # `waking` stays True meanwhile, so that reports do not wake the loop once more.
        callback = self.callback
        count = min(len(self.outbox), DELIVERIES_PER_PASS)
        for _ in range(count):
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
        loop = self.loop
        if count and not self.outbox and loop is not None and self.history.is_crowded:
            self.waking = True
            loop.call_later(GATHER_SECONDS, self._drain)
            return
        self.waking = False
        if self.outbox and loop is not None:  # also what came since the last look
            self.waking = True
            loop.call_soon(self._drain)


def ignore(task: Any, state: str) -> None:
    """Do nothing: the callback of an attachment without an owner."""
