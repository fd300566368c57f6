"""The backends: each runs tasks somewhere, and all speak one protocol.

A class is imported when it is first asked for, so that the optional packages of one backend cost
nothing to those who use another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseBackend as BaseBackend
    from rhapsody.backends.base import Work as Work
    from rhapsody.backends.concurrent import (
        ConcurrentExecutionBackend as ConcurrentExecutionBackend,
    )
    from rhapsody.backends.inference import (
        DragonVllmInferenceBackend as DragonVllmInferenceBackend,
    )
    from rhapsody.backends.noop import NoopExecutionBackend as NoopExecutionBackend
    from rhapsody.backends.protocol import Backend as Backend
    from rhapsody.backends.protocol import TaskStates as TaskStates
    from rhapsody.backends.registry import BackendRegistry as BackendRegistry
    from rhapsody.backends.registry import discover_backends as discover_backends
    from rhapsody.backends.registry import get_backend as get_backend

_HOME = {
    "Backend": "protocol",
    "BackendRegistry": "registry",
    "BaseBackend": "base",
    "ConcurrentExecutionBackend": "concurrent",
    "DragonVllmInferenceBackend": "inference",
    "NoopExecutionBackend": "noop",
    "TaskStates": "protocol",
    "Work": "base",
    "discover_backends": "registry",
    "get_backend": "registry",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
