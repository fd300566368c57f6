"""The Dragon backend at its import path in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.dragon import DragonExecutionBackend, DragonExecutionBackendV3

__all__ = ["DragonExecutionBackend", "DragonExecutionBackendV3"]
