"""Import path of the configuration objects in `rhapsody-py`; see `rhapsody.inference`."""

from __future__ import annotations

from rhapsody.inference.configuration.dragon import (
    BatchingConfig,
    DynamicWorkerConfig,
    GuardrailsConfig,
    HardwareConfig,
    ModelConfig,
)

__all__ = [
    "BatchingConfig",
    "DynamicWorkerConfig",
    "GuardrailsConfig",
    "HardwareConfig",
    "ModelConfig",
]
