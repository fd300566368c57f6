"""The no-op backend under its module's name in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.noop import NoopExecutionBackend

__all__ = ["NoopExecutionBackend"]
