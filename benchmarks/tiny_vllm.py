"""A tiny model on vLLM on the CPU, which several benchmarks serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhapsody.backends import DragonVllmInferenceBackend

__all__ = ["ENVIRONMENT", "tiny_vllm"]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
}
"""Variables for the process that starts vLLM."""


def tiny_vllm(
    folder: Path, engine: Mapping[str, Any], **options: Any
) -> DragonVllmInferenceBackend:
    """Create the model in a folder, and return a backend that serves it.

    Args:
        folder: Folder for the model and the configuration file.
        engine: Options of vLLM, by their names in Python.
        **options: Further arguments of the backend.
    """
    from rhapsody.testing.tiny_llama import make_tiny_llama

    model = make_tiny_llama(folder / "tiny")
    config = folder / "config.yaml"
    config.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in engine.items()))
    return DragonVllmInferenceBackend(
        config, str(model), num_gpus=0, launcher="local", host="127.0.0.1", port=0, **options
    )
