"""New weights in the engine of a vLLM server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rhapsody.inference.protocol.errors import RequestError

__all__ = ["load_weights"]

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt")


async def load_weights(engine: Any, path: str) -> None:
    """Load weights in all workers of an engine that has no requests, and drop its caches.

    Args:
        engine: The engine's client, an AsyncLLM.
        path: The folder of the weights.

    Raises:
        RequestError: The folder has no weights of this model. The engine was not changed.
        Exception: The engine failed, and may have damaged weights.
    """
    await asyncio.to_thread(_check, Path(path), engine.model_config)
    try:
        await engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
    except Exception as error:
        if "weights_path" in str(error) and "unexpected keyword" in str(error):
            # An early version, whose workers reload the weights that they were started with.
            raise RequestError("This version of vLLM cannot load other weights.", "path") from error
        raise
    # It has what the former weights computed. vLLM returns False if it could not be dropped.
    if await engine.reset_prefix_cache() is False:
        raise RuntimeError("the cache of prefixes could not be dropped")
    # The workers have dropped what they computed of images. Unless the scheduler does so too, the
    # next prompt with such an image ends the engine ("Encoder cache miss", vLLM 0.32).
    if hasattr(engine, "reset_encoder_cache"):
        await engine.reset_encoder_cache()


def _check(path: Path, config: Any) -> None:
    """Refuse a folder that cannot have weights of the model, before the engine is changed."""
    if not any(next(path.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise RequestError(f"{path} has no weights ({', '.join(WEIGHT_FILES)}).", "path")
    try:
        described = json.loads((path / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}/config.json cannot be read: {error}", "path") from error
    served, found = config.hf_config.architectures, described.get("architectures")
    if found and served and list(found) != list(served):
        raise RequestError(
            f"{path} has weights for {', '.join(found)}, and the model is {', '.join(served)}.",
            "path",
        )
