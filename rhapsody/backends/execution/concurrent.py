"""The concurrent backend at its import path in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.concurrent import ConcurrentExecutionBackend

__all__ = ["ConcurrentExecutionBackend"]
