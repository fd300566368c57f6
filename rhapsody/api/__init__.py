"""What users hold in their hands: tasks, sessions and errors."""

from __future__ import annotations

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
from rhapsody.api.session import Session
from rhapsody.api.tasks import AITask, BaseTask, ComputeTask

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
