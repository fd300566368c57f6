"""The concurrent backend under its module's name in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.concurrent import ConcurrentExecutionBackend

__all__ = ["ConcurrentExecutionBackend"]
