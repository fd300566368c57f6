"""vLLM's options from a configuration file: keys of `vllm serve --config`, or Dragon's sections."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from rhapsody.errors import ConfigurationError
from rhapsody.inference.vllm.versions import Arguments
from rhapsody.suggest import did_you_mean, unknown_name

__all__ = ["arguments_of", "options_from"]

logger = logging.getLogger(__name__)

PARAMETER_KEYS = {
    "model": "model_name",
    "served-model-name": "model_name",
    "tensor-parallel-size": "tp_size",
    "host": "host",
    "port": "port",
}
"""Keys with a constructor parameter, which overrides them."""

REFUSED = {
    "api-key": "use the backend's api_key=",
    "api-server-count": "each replica has one server",
    "grpc": "replicas are reached over HTTP",
    "headless": "replicas are reached over HTTP",
    "master-addr": "set nodes_per_replica, and the ranks find each other",
    "master-port": "set nodes_per_replica, and the ranks find each other",
    "middleware": "the batch route must be the outermost middleware",
    "nnodes": "use the backend's nodes_per_replica=",
    "node-rank": "use the backend's nodes_per_replica=",
    "pipeline-parallel-size": "a replica spans its tp_size GPUs by tensor parallelism",
    "root-path": "the gateway forwards paths unchanged",
    "uds": "the launcher chooses the sockets of replicas",
}
REFUSED_PREFIXES = {
    "data-parallel-": "raise num_gpus or num_nodes, which start more replicas",
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
"""The sections of Dragon's own inference service, and their keys."""

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
SAMPLING_DEFAULTS = {
    ("llm", "max_tokens"): "max_new_tokens",
    ("llm", "repetition_penalty"): "repetition_penalty",
    ("llm", "temperature"): "temperature",
    ("llm", "top_k"): "top_k",
    ("llm", "top_p"): "top_p",
}


def options_from(
    where: str, loaded: Mapping[Any, Any], parameters: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """Validate the content of a configuration file, and return the server's options.

    Args:
        where: The file, for error messages.
        loaded: The file's content.
        parameters: The constructor's parameters, which override the file.
        known: The options of the installed vLLM; if empty, vLLM itself refuses unknown ones.

    Raises:
        ConfigurationError: A key is unknown, or cannot be set by users.
    """
    sections = {key for key in loaded if key in SECTIONS and isinstance(loaded[key], Mapping)}
    if sections:
        return _from_sections(where, loaded, parameters)
    options = {str(key).replace("_", "-"): value for key, value in loaded.items()}
    overridden = {}
    for key in options:
        why = REFUSED.get(key)
        for prefix, reason in REFUSED_PREFIXES.items():
            why = reason if key.startswith(prefix) else why
        if why is not None:
            raise ConfigurationError(f"{where}: the key '{key}' cannot be set: {why}")
        if key in PARAMETER_KEYS:
            overridden[key] = PARAMETER_KEYS[key]
        elif known and key not in known:
            hint = did_you_mean(key, known, cutoff=0.5) or "see: vllm serve --help"
            raise ConfigurationError(f"{where}: unknown key '{key}'; {hint}")
    for key, parameter in overridden.items():
        _note_override(where, key, options.pop(key), parameter, parameters)
    return options


def _from_sections(
    where: str, loaded: Mapping[Any, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    unused = []
    for section, values in loaded.items():
        if section in ("run_type", "token"):
            continue
        if section not in SECTIONS or not isinstance(values, Mapping):
            raise ConfigurationError(f"{where}: {unknown_name('section', str(section), SECTIONS)}")
        for key, value in values.items():
            place = (section, key)
            if key not in SECTIONS[section]:
                place_name = f"section '{section}'"
                unknown = unknown_name("key", str(key), SECTIONS[section], place_name)
                raise ConfigurationError(f"{where}: {unknown}")
            if place in PARAMETERS:
                if value != -1:  # Dragon's "as many as there are"
                    name = f"{section}.{key}"
                    _note_override(where, name, value, PARAMETERS[place], parameters)
            elif value is None or value == "":
                continue
            elif place in ENGINE_KEYS:
                options[ENGINE_KEYS[place]] = value
            elif place in SAMPLING_DEFAULTS:
                defaults[SAMPLING_DEFAULTS[place]] = value
            else:
                unused.append(f"{section}.{key}")
    if defaults:
        options["override-generation-config"] = defaults
    if unused:
        logger.warning("%s: these keys have no effect: %s", where, ", ".join(unused))
    return options


def _note_override(
    where: str, key: str, value: Any, parameter: str, parameters: Mapping[str, Any]
) -> None:
    given = parameters[parameter]
    if value != given:
        logger.warning(
            "%s: %s=%r is ignored, the backend's %s=%r overrides it",
            *(where, key, value, parameter, given),
        )


def arguments_of(options: Mapping[str, Any], known: Arguments) -> list[str]:
    """Return options as arguments of vLLM's command line.

    Args:
        options: Values from YAML by option name, with dashes.
        known: The options of the installed vLLM.
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
