"""The backends, which run tasks; all of them implement one protocol.

Each class is imported on first access, so that using one backend does not import the optional
packages of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.api.session import Session as Session
    from rhapsody.backends.base import BaseBackend as BaseBackend
    from rhapsody.backends.choice import inference_backend as inference_backend
    from rhapsody.backends.concurrent import (
        ConcurrentExecutionBackend as ConcurrentExecutionBackend,
    )
    from rhapsody.backends.constants import StateMapper as StateMapper
    from rhapsody.backends.constants import TasksMainStates as TasksMainStates
    from rhapsody.backends.core.work import Work as Work
    from rhapsody.backends.dask import DaskExecutionBackend as DaskExecutionBackend
    from rhapsody.backends.dragon import DragonExecutionBackend as DragonExecutionBackend
    from rhapsody.backends.dragon import DragonExecutionBackendV3 as DragonExecutionBackendV3
    from rhapsody.backends.endpoint import EndpointInferenceBackend as EndpointInferenceBackend
    from rhapsody.backends.gateway import InferenceGateway as InferenceGateway
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
    "Backend": "rhapsody.backends.protocol",
    "BackendRegistry": "rhapsody.backends.registry",
    "BaseBackend": "rhapsody.backends.base",
    "ConcurrentExecutionBackend": "rhapsody.backends.concurrent",
    "DaskExecutionBackend": "rhapsody.backends.dask",
    "DragonExecutionBackend": "rhapsody.backends.dragon",
    "DragonExecutionBackendV3": "rhapsody.backends.dragon",
    "DragonVllmInferenceBackend": "rhapsody.backends.inference",
    "EndpointInferenceBackend": "rhapsody.backends.endpoint",
    "InferenceGateway": "rhapsody.backends.gateway",
    "NoopExecutionBackend": "rhapsody.backends.noop",
    "Session": "rhapsody.api.session",
    "StateMapper": "rhapsody.backends.constants",
    "TaskStates": "rhapsody.backends.protocol",
    "TasksMainStates": "rhapsody.backends.constants",
    "Work": "rhapsody.backends.core.work",
    "discover_backends": "rhapsody.backends.registry",
    "get_backend": "rhapsody.backends.registry",
    "inference_backend": "rhapsody.backends.choice",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
