"""Engines: what serves a model, as a command without its address."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rhapsody.inference.vllm.options import arguments_of
from rhapsody.inference.vllm.versions import Arguments, server_environment

__all__ = ["Engine", "embedded", "vllm"]

EMBEDDED_PROMPTS = 256
"""Prompts that one embedded server works on at a time, where the configuration says nothing."""

BATCH_ROUTE = "rhapsody.inference.worker.BatchRoute"


@dataclass(frozen=True)
class Engine:
    """How to start one server of a model.

    Attributes:
        command: Program and arguments. Others can read them, so no secret is among them.
        environment: Variables for it, secrets too.
        limit: Prompts that it works on at a time; None where only the server knows.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    limit: int | None = None


def embedded(model_name: str, options: Mapping[str, Any]) -> Engine:
    """Return the embedded model's engine.

    Args:
        model_name: The name it serves under.
        options: Options of the server, without their leading dashes.
    """
    command = [sys.executable, "-m", "rhapsody.inference.embedded", "--model", model_name]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return Engine(command, limit=int(options.get("max-num-seqs", EMBEDDED_PROMPTS)))


def vllm(model_name: str, tp_size: int, options: Mapping[str, Any], known: Arguments) -> Engine:
    """Return vLLM's engine: a stock `vllm serve` with the batch route.

    Args:
        model_name: Name or path of the model, and the name it serves under.
        tp_size: GPUs that it spans.
        options: Options of `vllm serve`, without their leading dashes.
        known: The options that the installed vLLM has.
    """
    options = dict(options)
    environment = server_environment()
    if isinstance(options.get("hf-token"), str):
        environment["HF_TOKEN"] = options.pop("hf-token")
    if "log-level" in options:
        environment["VLLM_LOGGING_LEVEL"] = str(options.pop("log-level")).upper()
    # One line in the log for every request would cost more than the request.
    options.setdefault("disable-uvicorn-access-log", True)
    command = [
        *(sys.executable, "-m", "rhapsody.inference.vllm.server", "serve", model_name),
        *("--served-model-name", model_name),
        *("--tensor-parallel-size", str(tp_size)),
        *("--middleware", BATCH_ROUTE),
        *arguments_of(options, known),
    ]
    return Engine(command, environment)
