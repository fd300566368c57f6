"""Tiny models on vLLM on the CPU, which several benchmarks serve."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.backends import DragonVllmInferenceBackend

__all__ = ["ENVIRONMENT", "direct_session", "make_image_model", "make_reranker", "tiny_vllm"]

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
    folder: Path,
    engine: Mapping[str, Any],
    make: Callable[[Path], Path] | None = None,
    **options: Any,
) -> DragonVllmInferenceBackend:
    """Create the model in a folder, and return a backend that serves it.

    Args:
        folder: Folder for the model and the configuration file.
        engine: Options of vLLM, by their names in Python.
        make: Writes the model to a folder; None: `make_tiny_llama`.
        **options: Further arguments of the backend.
    """
    from rhapsody.testing.tiny_llama import make_tiny_llama

    model = (make or make_tiny_llama)(folder / "tiny")
    config = folder / "config.yaml"
    config.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in engine.items()))
    return DragonVllmInferenceBackend(
        config, str(model), num_gpus=0, launcher="local", host="127.0.0.1", port=0, **options
    )


@contextlib.asynccontextmanager
async def direct_session(
    backend: DragonVllmInferenceBackend,
) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield an HTTP session with the only server of a running backend, without the gateway."""
    assert backend._service is not None
    [replica] = backend._service.pool.replicas
    path = str(replica.address).removeprefix("unix:")
    key = {"X-Rhapsody-Key": replica._environment["RHAPSODY_REPLICA_KEY"]}
    connector = aiohttp.UnixConnector(path, limit=0)
    async with aiohttp.ClientSession("http://replica", connector=connector, headers=key) as http:
        yield http


def make_image_model(folder: Path) -> Path:
    """Write a tiny BLIP-2 with random weights, which takes an image, and return its folder.

    vLLM imports torchvision for most other models that take images.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        LlamaConfig,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from rhapsody.testing.tiny_llama import make_tiny_llama

    make_tiny_llama(folder)  # for the tokenizer and the sizes; the weights are replaced
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' }}{% endfor %}{% endfor %}<|assistant|>\n"
    )
    text = LlamaConfig.from_pretrained(folder, vocab_size=2 * len(tokenizer))
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small["num_attention_heads"] = 1
    config = Blip2Config(
        vision_config={**small, "image_size": 56, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 64, "vocab_size": text.vocab_size},
        text_config=text.to_dict(),
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    Blip2Processor(images, tokenizer, num_query_tokens=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reranker(folder: Path) -> Path:
    """Write a tiny model with random weights that scores pairs of texts, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from rhapsody.testing.tiny_llama import make_tiny_llama

    make_tiny_llama(folder)  # for the tokenizer; the weights are replaced
    config = LlamaConfig.from_pretrained(folder, num_labels=1, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder
