"""Task states under the names of `rhapsody-py`; `rhapsody.backends.TaskStates` has the strings.

Every backend reports the same plain strings, so there is nothing to map: `StateMapper` is kept for
backends that were written for `rhapsody-py` and return one from `get_task_states_map`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from rhapsody.backends.protocol import TaskStates

__all__ = ["StateMapper", "TasksMainStates"]


class TasksMainStates(Enum):
    """The states that a backend reports; the value of each is the string in `task.state`."""

    DONE = TaskStates.DONE
    FAILED = TaskStates.FAILED
    CANCELED = TaskStates.CANCELED
    RUNNING = TaskStates.RUNNING


class StateMapper(TaskStates):
    """The states of any backend, as attributes.

    Args:
        backend: The backend, or its name; all have the same states.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    @classmethod
    def register_backend_tasks_states_with_defaults(cls, backend: Any) -> None:
        """Accept a backend that uses the states there are, as every backend must."""
