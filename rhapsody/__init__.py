"""Rhapsody: functions, executables and LLM inference in one program, with or without AsyncFlow."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up
from rhapsody.logger import enable_logging

if TYPE_CHECKING:
    from rhapsody.api import AITask as AITask
    from rhapsody.api import ComputeTask as ComputeTask
    from rhapsody.api import Session as Session
    from rhapsody.api import WalltimeReached as WalltimeReached
    from rhapsody.backends import InferenceGateway as InferenceGateway
    from rhapsody.backends import discover_backends as discover_backends
    from rhapsody.backends import get_backend as get_backend
    from rhapsody.backends import inference_backend as inference_backend
    from rhapsody.inference.images import image_part as image_part
    from rhapsody.walltime import EXIT_RESUBMIT as EXIT_RESUBMIT
    from rhapsody.walltime import remaining_walltime as remaining_walltime

try:
    __version__ = version("rhapsody")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

_HOME = {
    "AITask": "rhapsody.api",
    "BackendError": "rhapsody.api",
    "BackendRegistry": "rhapsody.backends",
    "BaseTask": "rhapsody.api",
    "ComputeTask": "rhapsody.api",
    "InferenceGateway": "rhapsody.backends",
    "ResourceError": "rhapsody.api",
    "RhapsodyError": "rhapsody.api",
    "Session": "rhapsody.api",
    "SessionError": "rhapsody.api",
    "TaskExecutionError": "rhapsody.api",
    "TaskValidationError": "rhapsody.api",
    "discover_backends": "rhapsody.backends",
    "EXIT_RESUBMIT": "rhapsody.walltime",
    "WalltimeReached": "rhapsody.api",
    "get_backend": "rhapsody.backends",
    "image_part": "rhapsody.inference.images",
    "inference_backend": "rhapsody.backends",
    "remaining_walltime": "rhapsody.walltime",
}

_ELSEWHERE = {
    "BaseBackend": "rhapsody.backends",
    "ConcurrentExecutionBackend": "rhapsody.backends",
    "DaskExecutionBackend": "rhapsody.backends",
    "DragonExecutionBackend": "rhapsody.backends",
    "DragonVllmInferenceBackend": "rhapsody.backends",
    "NoopExecutionBackend": "rhapsody.backends",
    "TaskCancelledError": "rhapsody.api",
    "TaskTimeoutError": "rhapsody.api",
    "WorkflowEngine": "asyncflow_ext",
    "extend": "asyncflow_ext",
}
"""Names of other packages that users are likely to look for here."""

__all__ = ["__version__", "enable_logging", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:  # `from rhapsody import X` would replace the text of an AttributeError
        raise ImportError(
            f"rhapsody has no '{name}'; use: from {_ELSEWHERE[name]} import {name}", name=name
        )
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
