"""The public interface: tasks, sessions and errors.

Importing an error does not import sessions and tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.errors import (
    BackendError,
    BackendInUseError,
    ConfigurationError,
    EngineError,
    JournalError,
    MissingExtraError,
    OverloadedError,
    PartialFailureError,
    PromptError,
    QueueTimeoutError,
    ReplicaError,
    ResourceError,
    RhapsodyError,
    SessionError,
    TaskCancelledError,
    TaskExecutionError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
    WalltimeReached,
    WorkerDied,
)
from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.api.session import Session as Session
    from rhapsody.api.state_manager import TaskStateManager as TaskStateManager
    from rhapsody.api.tasks import AITask as AITask
    from rhapsody.api.tasks import BaseTask as BaseTask
    from rhapsody.api.tasks import ComputeTask as ComputeTask

_HOME = {
    "AITask": "rhapsody.api.tasks",
    "BaseTask": "rhapsody.api.tasks",
    "ComputeTask": "rhapsody.api.tasks",
    "Session": "rhapsody.api.session",
    "TaskStateManager": "rhapsody.api.state_manager",
}

__all__ = [
    "AITask",
    "BackendError",
    "BackendInUseError",
    "BaseTask",
    "ComputeTask",
    "ConfigurationError",
    "EngineError",
    "JournalError",
    "MissingExtraError",
    "OverloadedError",
    "PartialFailureError",
    "PromptError",
    "QueueTimeoutError",
    "ReplicaError",
    "ResourceError",
    "RhapsodyError",
    "Session",
    "SessionError",
    "TaskCancelledError",
    "TaskExecutionError",
    "TaskStateManager",
    "TaskTimeoutError",
    "TaskValidationError",
    "UnsupportedTaskError",
    "WalltimeReached",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
