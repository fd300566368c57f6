"""Execution backends at their import path in `rhapsody-py`; see `rhapsody.backends`."""

from __future__ import annotations

from rhapsody.backends.concurrent import ConcurrentExecutionBackend
from rhapsody.backends.dask import DaskExecutionBackend
from rhapsody.backends.noop import NoopExecutionBackend

__all__ = ["ConcurrentExecutionBackend", "DaskExecutionBackend", "NoopExecutionBackend"]
