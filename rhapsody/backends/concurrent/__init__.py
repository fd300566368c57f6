"""Tasks on this machine: functions in threads or processes, and executables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.backends.concurrent.backend import (
        ConcurrentExecutionBackend as ConcurrentExecutionBackend,
    )

_HOME = {
    "ConcurrentExecutionBackend": "rhapsody.backends.concurrent.backend",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
