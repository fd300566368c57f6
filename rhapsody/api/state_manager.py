"""Task states recorded without a session, for programs that use the backends of `rhapsody-py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rhapsody.api.submissions.submission import AnyTask, Submission
from rhapsody.backends.protocol import TaskStates

__all__ = ["TaskStateManager"]


class TaskStateManager:
    """Records the states that a backend reports, and gives futures of its tasks.

    Pass `update_task` to the backend's `register_callback`. A `Session` does all of this itself.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Submission] = {}
        self._terminal_states: set[str] = set(TaskStates.terminal_states)
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Create futures for this loop from now on."""
        self._loop = loop

    def set_terminal_states(self, states: Iterable[str]) -> None:
        """Replace the states in which a task has ended."""
        self._terminal_states = set(states)

    def update_task(self, task: AnyTask, state: str, **_: object) -> None:
        """Write a state into its task, and complete the task's future if the state is terminal."""
        task["state"] = state
        if state in self._terminal_states:
            submission = self._waiting.pop(task["uid"], None)
            if submission is not None:
                submission.settle(_outcome(task, state))

    def get_wait_future(self, uid: str, task: AnyTask) -> asyncio.Future[AnyTask]:
        """Return the future of a task.

        Args:
            uid: The task's uid.
            task: The task.

        Returns:
            A future whose result is the task. It raises the exception of a failed task.

        Raises:
            RuntimeError: No loop runs, and none was bound.
        """
        submission = self._waiting.get(uid)
        if submission is None:
            loop = self._loop or asyncio.get_running_loop()
            submission = Submission(task, None, loop.create_future())
            state = task.get("state")
            if state in self._terminal_states:
                submission.settle(_outcome(task, state))
            else:
                self._waiting[uid] = submission
        return submission.future


def _outcome(task: AnyTask, state: str) -> str:
    """Return what a terminal state means; a backend may have terminal states of its own."""
    if state == TaskStates.CANCELED:
        return TaskStates.CANCELED
    failed = task.get("exception") is not None or task.get("exit_code")
    return TaskStates.FAILED if failed else TaskStates.DONE
