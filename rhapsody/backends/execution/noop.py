"""The no-op backend at its import path in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.noop import NoopExecutionBackend

__all__ = ["NoopExecutionBackend"]
