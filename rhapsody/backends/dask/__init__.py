"""Tasks on a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.backends.dask.backend import DaskExecutionBackend as DaskExecutionBackend

_HOME = {
    "DaskExecutionBackend": "rhapsody.backends.dask.backend",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
