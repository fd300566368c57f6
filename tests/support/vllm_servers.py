"""Real vLLM servers on the CPU, with a tiny model of random weights."""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import DragonVllmInferenceBackend

START_SECONDS = 300.0
"""Time limit for the start of a server; 20 s on an idle machine with two cores."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Compiling would take longer than all tests.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Environment variables for a small machine without network access."""

CONFIG = """
enforce-eager: true
max-num-seqs: 256
enable-auto-tool-choice: true
tool-call-parser: phi4_mini_json
structured-outputs-config:
  backend: xgrammar
  disable_any_whitespace: true
"""
"""JSON without whitespace, since random weights would write endless whitespace."""

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
ENDLESS: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}


@functools.cache
def tiny_llama() -> str:
    """Create the model once per test session."""
    from rhapsody.testing.tiny_llama import make_tiny_llama

    return str(make_tiny_llama(Path(tempfile.mkdtemp(prefix="tiny-llama-"))))


def make_adapter(folder: Path, rank: int = 8) -> Path:
    """Write a LoRA adapter of the tiny model, with random weights that change its responses."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{module}.lora_A.weight"] = torch.randn(rank, 128, generator=generator)
            weights[f"{module}.lora_B.weight"] = torch.randn(128, rank, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none"}
    config["target_modules"] = ["q_proj", "v_proj"]
    config["base_model_name_or_path"] = tiny_llama()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def vllm_backend(**options: Any) -> DragonVllmInferenceBackend:
    """Create a backend on vLLM, by default without the HTTP service."""
    model = tiny_llama()
    config = Path(model) / "config.yaml"
    config.write_text(CONFIG)
    defaults: dict[str, Any] = {
        "config_file": config,
        "model_name": model,
        "launcher": "local",
        "num_gpus": 0,
        "host": "127.0.0.1",
        "port": 0,
        "use_service": False,
        "startup_timeout": START_SECONDS,
    }
    return DragonVllmInferenceBackend(**{**defaults, **options})


def set_environment(patch: pytest.MonkeyPatch) -> None:
    """Set the environment variables of servers until the patch is undone."""
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, os.environ.get(name, value))
