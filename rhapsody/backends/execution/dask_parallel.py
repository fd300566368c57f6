"""The Dask backend under its module's name in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.dask import DaskExecutionBackend

__all__ = ["DaskExecutionBackend"]
