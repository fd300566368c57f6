"""Import path of the inference backend in `rhapsody-py`."""

from __future__ import annotations

from rhapsody.backends.inference import DragonVllmInferenceBackend

__all__ = ["DragonVllmInferenceBackend"]
