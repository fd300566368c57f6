"""Tasks on the nodes of a Dragon allocation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rhapsody.lazy import look_up

if TYPE_CHECKING:
    from rhapsody.backends.dragon.backend import DragonExecutionBackend as DragonExecutionBackend
    from rhapsody.backends.dragon.backend import (
        DragonExecutionBackendV3 as DragonExecutionBackendV3,
    )

_HOME = {
    "DragonExecutionBackend": "rhapsody.backends.dragon.backend",
    "DragonExecutionBackendV3": "rhapsody.backends.dragon.backend",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    return look_up(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
