"""Unseen failures: failed tasks of `Session.submit` whose results nobody asked for."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from rhapsody.api.tasks import BaseTask
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import printable

__all__ = ["UnseenFailures"]

logger = logging.getLogger(__name__)

MOST_FAILED = 10_000
"""Failed tasks that are kept until the session closes, at most."""
LONGEST_REASON = 500


class UnseenFailures:
    """Collects failures that nobody but the holder of a task can learn of, and logs them."""

    def __init__(self) -> None:
        self._reasons: dict[BaseTask, str] = {}

    def watch(self, task: BaseTask, future: asyncio.Future[Any]) -> None:
        """Note the failure of a task when its future is done."""
        future.add_done_callback(partial(self._note, task))

    def _note(self, task: BaseTask, _: Any) -> None:
        if len(self._reasons) >= MOST_FAILED or task.is_seen:
            return
        if task.get("state") == TaskStates.FAILED:
            self._reasons[task] = f"{type(task['exception']).__name__}: {task.get('stderr') or ''}"

    def log(self) -> None:
        """Log how many there are, with the reason of the first, and forget them."""
        unseen = [reason for task, reason in self._reasons.items() if not task.is_seen]
        self._reasons.clear()
        if unseen:
            logger.error(
                "%d task%s of session.submit() failed, and nobody asked for the result; the first: "
                "%s",
                len(unseen),
                "" if len(unseen) == 1 else "s",
                printable(unseen[0]).strip()[:LONGEST_REASON],
            )
