"""vLLM's options from a configuration file: keys of `vllm serve --config`, or Dragon's sections."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import ConfigurationError
from rhapsody.inference.vllm.versions import Arguments

if TYPE_CHECKING:
    from rhapsody.inference.config import InferenceConfig

__all__ = ["arguments_of", "options_from"]

logger = logging.getLogger(__name__)

OURS = {
    "model": "model_name",
    "served-model-name": "model_name",
    "tensor-parallel-size": "tp_size",
    "host": "host",
    "port": "port",
}
"""Keys for which the constructor has a parameter, which wins."""

REFUSED = {
    "api-key": "use the backend's api_key=",
    "api-server-count": "each replica has one",
    "grpc": "replicas are reached over HTTP",
    "headless": "replicas are reached over HTTP",
    "middleware": "the batch route is one already, and must be the outermost",
    "pipeline-parallel-size": "a replica spans the tp_size GPUs of one node",
    "root-path": "the gateway passes paths on as they are",
    "uds": "replicas listen where the launcher says",
}
REFUSED_PREFIXES = {
    "data-parallel-": "replicas are what runs in parallel; raise num_gpus or num_nodes",
    "ssl-": "replicas are private; put a proxy with TLS in front of the gateway",
}

SECTIONS: dict[str, frozenset[str]] = {
    "required": frozenset({"flask_secret_key", "hf_token", "model_name", "tp_size"}),
    "hardware": frozenset(
        {
            "inf_wrkr_queue_maxsize",
            "node_offset",
            "num_gpus",
            "num_inf_wrkrs_per_cpu",
            "num_nodes",
        }
    ),
    "llm": frozenset(
        {
            "dtype",
            "gpu_memory_utilization",
            "ignore_eos",
            "max_model_len",
            "max_tokens",
            "padding_side",
            "repetition_penalty",
            "skip_special_tokens",
            "system_prompt",
            "temperature",
            "top_k",
            "top_p",
            "truncation_side",
            "use_async_streaming",
            "vllm_log_level",
        }
    ),
    "input_batching": frozenset(
        {"input_batch_wait_seconds", "max_batch_limit", "toggle_on", "type"}
    ),
    "guardrails": frozenset({"prompt_guard_model", "prompt_guard_sensitivity", "toggle_on"}),
    "dynamic_inf_wrkr": frozenset(
        {
            "min_active_inf_wrkrs_per_cpu",
            "spin_down_threshold_seconds",
            "spin_up_prompt_threshold",
            "spin_up_threshold_seconds",
            "toggle_on",
        }
    ),
}
"""The layout of Dragon's own inference service."""

PARAMETERS = {
    ("required", "model_name"): "model_name",
    ("required", "tp_size"): "tp_size",
    ("hardware", "num_nodes"): "num_nodes",
    ("hardware", "num_gpus"): "num_gpus",
    ("hardware", "node_offset"): "offset",
    ("input_batching", "max_batch_limit"): "max_batch_size",
}
ENGINE_KEYS = {
    ("required", "hf_token"): "hf-token",
    ("llm", "dtype"): "dtype",
    ("llm", "gpu_memory_utilization"): "gpu-memory-utilization",
    ("llm", "max_model_len"): "max-model-len",
    ("llm", "vllm_log_level"): "log-level",
}
DEFAULTS_OF_PROMPTS = {
    ("llm", "max_tokens"): "max_new_tokens",
    ("llm", "repetition_penalty"): "repetition_penalty",
    ("llm", "temperature"): "temperature",
    ("llm", "top_k"): "top_k",
    ("llm", "top_p"): "top_p",
}


def options_from(
    where: str, loaded: Mapping[Any, Any], config: InferenceConfig, known: Iterable[str]
) -> dict[str, Any]:
    """Check what a file says, and return the options for the server.

    Args:
        where: The file, in words.
        loaded: What it holds.
        config: The constructor's arguments, which win.
        known: The options that the installed vLLM has; where none, it is left to vLLM to say.

    Raises:
        ConfigurationError: A key is unknown, or not for users to set.
    """
    sections = {key for key in loaded if key in SECTIONS and isinstance(loaded[key], Mapping)}
    if sections:
        return _from_sections(where, loaded, config)
    options = {str(key).replace("_", "-"): value for key, value in loaded.items()}
    left_out = {}
    for key in options:
        why = REFUSED.get(key)
        for prefix, reason in REFUSED_PREFIXES.items():
            why = reason if key.startswith(prefix) else why
        if why is not None:
            raise ConfigurationError(f"{where}: the key '{key}' cannot be set here: {why}")
        if key in OURS:
            left_out[key] = OURS[key]
        elif known and key not in known:
            raise _unknown(where, f"key '{key}'", key, known, "vLLM")
    for key, parameter in left_out.items():
        _note_override(where, key, options.pop(key), parameter, config)
    return options


def _from_sections(
    where: str, loaded: Mapping[Any, Any], config: InferenceConfig
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    unused = []
    for section, values in loaded.items():
        if section in ("run_type", "token"):
            continue
        if section not in SECTIONS or not isinstance(values, Mapping):
            raise _unknown(where, f"section '{section}'", str(section), SECTIONS, "this layout")
        for key, value in values.items():
            place = (section, key)
            if key not in SECTIONS[section]:
                name = f"key '{key}' in section '{section}'"
                raise _unknown(where, name, str(key), SECTIONS[section], f"'{section}'")
            if place in PARAMETERS:
                if value != -1:  # Dragon's "as many as there are"
                    name = f"{section}.{key}"
                    _note_override(where, name, value, PARAMETERS[place], config)
            elif value is None or value == "":
                continue
            elif place in ENGINE_KEYS:
                options[ENGINE_KEYS[place]] = value
            elif place in DEFAULTS_OF_PROMPTS:
                defaults[DEFAULTS_OF_PROMPTS[place]] = value
            else:
                unused.append(f"{section}.{key}")
    if defaults:
        options["override-generation-config"] = defaults
    if unused:
        logger.warning("%s: not used here: %s", where, ", ".join(unused))
    return options


def _unknown(
    where: str, what: str, key: str, known: Iterable[str], whose: str
) -> ConfigurationError:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else f", which {whose} does not know"
    return ConfigurationError(f"{where}: unknown {what}{hint}")


def _note_override(
    where: str, key: str, value: Any, parameter: str, config: InferenceConfig
) -> None:
    ours = getattr(config, parameter)
    if value != ours:
        logger.warning(
            "%s: %s=%r is left out, the backend's %s=%r wins", where, key, value, parameter, ours
        )


def arguments_of(options: Mapping[str, Any], known: Arguments) -> list[str]:
    """Put options the way vLLM's command line takes them.

    Args:
        options: Option names, with dashes, to values as YAML has them.
        known: The options that the installed vLLM has.
    """
    arguments: list[str] = []
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool):
            if value:
                arguments.append(f"--{key}")
            elif key not in known.switches:
                arguments.append(f"--no-{key}")
        elif isinstance(value, Mapping):
            arguments += [f"--{key}", json.dumps(value)]
        elif isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)] if value else []
        else:
            arguments += [f"--{key}", str(value)]
    return arguments
