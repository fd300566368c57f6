"""AsyncFlow's engine with `ai_task` from birth."""

from __future__ import annotations

from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.ai_task import extend
from rhapsody.api.errors import ConfigurationError

__all__ = ["WorkflowEngine"]


class WorkflowEngine(StockEngine):  # type: ignore[misc]
    """The stock engine of `radical.asyncflow` with an `ai_task` decorator.

    Make one by `flow = await WorkflowEngine.create(backend=...)`, as with the stock engine.

    Raises:
        ConfigurationError: Two of its backends have the same name.
        BackendInUseError: A backend belongs to another engine or session that is still open.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            for backend in getattr(self, "_backends", {}).values():
                release = getattr(backend, "release", None)
                if release is not None:
                    release(self)
            raise
        extend(self)

    def _attach_backend(self, backend: Any) -> None:
        if backend.name in self._backends:
            raise ConfigurationError(
                f"two backends are named '{backend.name}'; give one of them another name=..."
            )
        super()._attach_backend(backend)
