"""The registry of backends, at its import path in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.registry import BackendRegistry, discover_backends, get_backend

__all__ = ["BackendRegistry", "discover_backends", "get_backend"]
