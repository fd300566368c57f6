"""What users hold in their hands: tasks, sessions and errors.

Errors are of use to all that sessions and tasks stand on, and do not bring those along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import (
    BackendError,
    BackendInUseError,
    ConfigurationError,
    MissingExtraError,
    OverloadedError,
    PartialFailureError,
    PromptError,
    ReplicaError,
    ResourceError,
    RhapsodyError,
    SessionError,
    TaskCancelledError,
    TaskExecutionError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
    WorkerDied,
)
from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.api.session import Session as Session
    from rhapsody.api.tasks import AITask as AITask
    from rhapsody.api.tasks import BaseTask as BaseTask
    from rhapsody.api.tasks import ComputeTask as ComputeTask

_HOME = {
    "AITask": "rhapsody.api.tasks",
    "BaseTask": "rhapsody.api.tasks",
    "ComputeTask": "rhapsody.api.tasks",
    "Session": "rhapsody.api.session",
}

__all__ = [
    "AITask",
    "BackendError",
    "BackendInUseError",
    "BaseTask",
    "ComputeTask",
    "ConfigurationError",
    "MissingExtraError",
    "OverloadedError",
    "PartialFailureError",
    "PromptError",
    "ReplicaError",
    "ResourceError",
    "RhapsodyError",
    "Session",
    "SessionError",
    "TaskCancelledError",
    "TaskExecutionError",
    "TaskTimeoutError",
    "TaskValidationError",
    "UnsupportedTaskError",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
