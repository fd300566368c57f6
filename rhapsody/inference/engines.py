"""The engines that serve a model: the command that starts a server of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rhapsody.inference.vllm.options import arguments_of
from rhapsody.inference.vllm.versions import Arguments, server_environment

__all__ = ["ServerCommand", "embedded", "vllm"]

DEFAULT_EMBEDDED_LIMIT = 256
"""Prompts that an embedded server works on at a time, unless `max-num-seqs` is set."""

MEDIA_DOMAINS = "allowed-media-domains"
NO_DOMAIN = "set-allowed-media-domains.invalid"
"""A domain that cannot exist (RFC 2606): a server fetches no image from a URL unless allowed."""

POLICY = "scheduling-policy"

LORA, LORA_VARIABLE = "enable-lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The gateway does not forward the routes that this variable opens."""

CPU_ADVICE = {
    r"(?i)kv.?cache|cache blocks|memory": "on the CPU, the environment variable "
    "VLLM_CPU_KVCACHE_SPACE is the memory for the KV cache in GiB; set it to what is free"
}

BATCH_ROUTE = "rhapsody.inference.vllm.batch_route.BatchRoute"


@dataclass(frozen=True)
class ServerCommand:
    """How to start one server of a model.

    Attributes:
        arguments: Program and arguments, without the address. Other users of the machine can read
            them, so they hold no secrets.
        environment: Variables for the server; they may hold secrets.
        limit: Prompts that it works on at a time; None if only the server knows.
        fetches_media: Whether the server fetches images from any URL, and cannot be told not to.
        has_priorities: Whether the server handles requests by their `priority`, lower first.
        takes_adapters: Whether the server loads LoRA adapters while it runs.
        advice: What users can do about errors in the server's log, by a regular expression.
    """

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    limit: int | None = None
    fetches_media: bool = False
    has_priorities: bool = True
    takes_adapters: bool = False
    advice: dict[str, str] = field(default_factory=dict)


def embedded(model_name: str, options: Mapping[str, Any]) -> ServerCommand:
    """Return the command of the embedded model's server.

    Args:
        model_name: The name it serves under.
        options: Options of the server, without their leading dashes.
    """
    arguments = [sys.executable, "-m", "rhapsody.inference.embedded", "--model", model_name]
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    return ServerCommand(arguments, limit=int(options.get("max-num-seqs", DEFAULT_EMBEDDED_LIMIT)))


def vllm(
    model_name: str,
    tp_size: int,
    options: Mapping[str, Any],
    known: Arguments,
    *,
    on_cpu: bool = False,
) -> ServerCommand:
    """Return the command of vLLM's server: a stock `vllm serve` with the batch route.

    Args:
        model_name: Name or path of the model, and the name it serves under.
        tp_size: GPUs that it spans.
        options: Options of `vllm serve`, without their leading dashes.
        known: The options that the installed vLLM has.
        on_cpu: Whether it runs without a GPU.
    """
    options = dict(options)
    environment = server_environment()
    if isinstance(options.get("hf-token"), str):
        environment["HF_TOKEN"] = options.pop("hf-token")
    if "log-level" in options:
        environment["VLLM_LOGGING_LEVEL"] = str(options.pop("log-level")).upper()
    # A log line per request costs more than the request itself.
    options.setdefault("disable-uvicorn-access-log", True)
    # vLLM takes an empty list as "all domains".
    has_option = not known.names or MEDIA_DOMAINS in known.names
    if has_option and not options.get(MEDIA_DOMAINS):
        options[MEDIA_DOMAINS] = [NO_DOMAIN]
    if not known.names or POLICY in known.names:
        options.setdefault(POLICY, "priority")
    takes_adapters = options.get(LORA) is True
    if takes_adapters:
        environment[LORA_VARIABLE] = "True"
    arguments = [
        *(sys.executable, "-m", "rhapsody.inference.vllm.server", "serve", model_name),
        *("--served-model-name", model_name),
        *("--tensor-parallel-size", str(tp_size)),
        *("--middleware", BATCH_ROUTE),
        *arguments_of(options, known),
    ]
    return ServerCommand(
        arguments,
        environment,
        fetches_media=not has_option,
        has_priorities=options.get(POLICY) == "priority",
        takes_adapters=takes_adapters,
        advice=CPU_ADVICE if on_cpu else {},
    )
