"""Rhapsody: simulations and LLM inference side by side, as AsyncFlow workflows or on their own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up
from rhapsody.logger import enable_logging

if TYPE_CHECKING:
    from rhapsody.api import AITask as AITask
    from rhapsody.api import ComputeTask as ComputeTask
    from rhapsody.api import Session as Session
    from rhapsody.backends import discover_backends as discover_backends
    from rhapsody.backends import get_backend as get_backend

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
    "ResourceError": "rhapsody.api",
    "RhapsodyError": "rhapsody.api",
    "Session": "rhapsody.api",
    "SessionError": "rhapsody.api",
    "TaskExecutionError": "rhapsody.api",
    "TaskValidationError": "rhapsody.api",
    "discover_backends": "rhapsody.backends",
    "get_backend": "rhapsody.backends",
}

__all__ = ["__version__", "enable_logging", *_HOME]


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
