"""The configuration objects of Dragon's inference service, which `rhapsody-py` programs pass."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhapsody.allocation import allocation, is_under_dragon
from rhapsody.errors import ConfigurationError
from rhapsody.gpus import this_machine

__all__ = [
    "BatchingConfig",
    "DynamicWorkerConfig",
    "GuardrailsConfig",
    "HardwareConfig",
    "ModelConfig",
    "model_parameters",
]

logger = logging.getLogger(__name__)

ALL = -1
"""Dragon's "as many as there are"."""


@dataclass
class ModelConfig:
    """A model, and the defaults of its prompts. None: the default of vLLM or of the model."""

    model_name: str
    hf_token: str | None = None
    tp_size: int = 1
    dtype: str | None = None
    max_tokens: int | None = None
    max_model_len: int | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    system_prompt: list[str] | None = None
    vllm_log_level: str | None = None
    gpu_memory_utilization: float | None = None
    use_async_streaming: bool | None = None


@dataclass
class HardwareConfig:
    """The nodes and GPUs to serve on; -1: all of them."""

    num_nodes: int = ALL
    num_gpus: int = ALL
    num_inf_workers_per_cpu: int = ALL
    node_offset: int = 0
    inf_wrkr_queue_maxsize: int = ALL


@dataclass
class BatchingConfig:
    """Batching in Dragon's service; the backend's `max_batch_size` is Rhapsody's."""

    enabled: bool = True
    batch_type: str = "pre-batch"
    batch_wait_seconds: float | None = None
    max_batch_size: int | None = None


@dataclass
class GuardrailsConfig:
    """Filters for prompts, which Rhapsody does not have."""

    enabled: bool = False
    prompt_guard_model: str | None = None
    prompt_guard_sensitivity: float | None = None


@dataclass
class DynamicWorkerConfig:
    """Workers that start and end with the load; Rhapsody's replicas always run."""

    enabled: bool = False
    min_active_workers_per_cpu: int | None = None
    spin_down_threshold_seconds: int | None = None
    spin_up_threshold_seconds: int | None = None
    spin_up_prompt_threshold: int | None = None


REQUIRED = ("model_name", "hf_token", "tp_size")


NO_PARAMETERS: dict[str, Any] = {
    "model_name": None,
    "config_file": None,
    "num_nodes": 1,
    "num_gpus": 1,
    "tp_size": 1,
    "offset": 0,
}
"""The values of the parameters that a model and its hardware replace."""


def model_parameters(
    given: Mapping[str, Any],
    model: Any,
    hardware: Any = None,
    batching: Any = None,
    guardrails: Any = None,
    dynamic_worker: Any = None,
    *,
    local: bool = False,
) -> dict[str, Any]:
    """Return the parameters of `InferenceConfig` that the objects stand for.

    Args:
        given: The parameters that the objects replace, as the caller passed them.
        model: A `ModelConfig`, this module's or Dragon's.
        hardware: A `HardwareConfig`; None: all nodes and GPUs.
        batching: A `BatchingConfig`; it has no effect.
        guardrails: A `GuardrailsConfig`; it must be disabled.
        dynamic_worker: A `DynamicWorkerConfig`; it has no effect.
        local: Whether to serve on this machine, and not on a Dragon allocation.

    Raises:
        ConfigurationError: An object has the wrong type, a parameter was passed as well, or the
            guardrails are enabled.
    """
    if model is None:
        raise ConfigurationError(
            "'hardware', 'batching', 'guardrails' and 'dynamic_worker' belong to 'model'; pass "
            "model=ModelConfig(...) as well"
        )
    doubled = [name for name, value in given.items() if value != NO_PARAMETERS[name]]
    if doubled:
        raise ConfigurationError(
            f"'{doubled[0]}' and 'model' exclude each other; set it in the ModelConfig or the "
            "HardwareConfig, or leave 'model' out"
        )
    placement = _placement(model, hardware, local)
    return {**placement, "sections": _sections(model, batching, guardrails, dynamic_worker)}


def _placement(model: Any, hardware: Any, local: bool) -> dict[str, Any]:
    hardware = HardwareConfig() if hardware is None else hardware
    for name, value, field in (
        ("model", model, "model_name"),
        ("hardware", hardware, "node_offset"),
    ):
        if not hasattr(value, field):
            raise ConfigurationError(
                f"'{name}' must be a {name.capitalize()}Config of rhapsody.backends.ai.config, "
                f"got {value!r}"
            )
    parameters = {
        "model_name": model.model_name,
        "tp_size": model.tp_size,
        "num_nodes": hardware.num_nodes,
        "num_gpus": hardware.num_gpus,
        "offset": hardware.node_offset,
    }
    if ALL in (hardware.num_nodes, hardware.num_gpus):
        nodes = [this_machine()] if local or not is_under_dragon() else allocation()
        nodes = nodes[hardware.node_offset :]
        if hardware.num_nodes == ALL:
            parameters["num_nodes"] = max(1, len(nodes))
        if hardware.num_gpus == ALL:
            parameters["num_gpus"] = min((len(node.gpus) for node in nodes), default=0)
    return parameters


def _sections(model: Any, batching: Any, guardrails: Any, dynamic_worker: Any) -> dict[str, Any]:
    """Return the rest of the objects as sections of Dragon's configuration file.

    Values that differ from their defaults count. Those that have no effect are logged.
    """
    if getattr(guardrails, "enabled", False):
        raise ConfigurationError(
            "guardrails are not supported, so prompts would not be filtered; leave 'guardrails' out"
        )
    unused = [
        f"{name}.{field}"
        for name, values in (("batching", batching), ("dynamic_worker", dynamic_worker))
        for field in _given(values)
    ]
    if unused:
        logger.warning("these settings have no effect: %s", ", ".join(unused))
    given = _given(model)
    sections = {
        "required": {key: given[key] for key in ("hf_token",) if key in given},
        "llm": {key: value for key, value in given.items() if key not in REQUIRED},
    }
    return {name: values for name, values in sections.items() if values}


def _given(values: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, by name."""
    if values is None:
        return {}
    given = {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value is not None and value != default:
            given[field.name] = value
    return given
