"""The inference backend at its import path in `rhapsody-py`; see `rhapsody.backends`."""

from __future__ import annotations

from rhapsody.backends.inference import DragonVllmInferenceBackend

__all__ = ["DragonVllmInferenceBackend"]
