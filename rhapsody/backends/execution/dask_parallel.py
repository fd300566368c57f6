"""The Dask backend at its import path in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.dask import DaskExecutionBackend

__all__ = ["DaskExecutionBackend"]
