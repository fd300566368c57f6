"""The parameters of the inference backend."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.ai.config import (
    BatchingConfig,
    DynamicWorkerConfig,
    GuardrailsConfig,
    HardwareConfig,
    ModelConfig,
)
from rhapsody.errors import ConfigurationError, UnsupportedTaskError
from tests.support.inference import embedded


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("config_file", None),
        ("model_name", None),
        ("num_nodes", 1),
        ("num_gpus", 1),
        ("tp_size", 1),
        ("port", 8000),
        ("offset", 0),
        ("use_service", True),
        ("max_batch_size", 1024),
        ("max_batch_wait_ms", 500),
    ],
)
def test_parameter_has_its_default(name: str, default: Any) -> None:
    parameters = inspect.signature(DragonVllmInferenceBackend).parameters
    assert parameters[name].default == default
    assert parameters[name].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_invalid_parameter_is_refused_by_the_constructor() -> None:
    with pytest.raises(ConfigurationError, match="'num_nodes' must be"):
        embedded(num_nodes=0)


def test_model_is_required() -> None:
    with pytest.raises(ConfigurationError, match="'model_name' must be the name or path"):
        DragonVllmInferenceBackend()


@pytest.mark.parametrize("as_keyword", [True, False])
def test_configuration_objects_become_parameters(as_keyword: bool) -> None:
    model = ModelConfig("some/model", hf_token="a-secret", tp_size=2, max_model_len=128)
    hardware = HardwareConfig(num_nodes=1, num_gpus=4, node_offset=3)
    if as_keyword:
        backend = DragonVllmInferenceBackend(model=model, hardware=hardware, name="vllm")
    else:
        backend = DragonVllmInferenceBackend(model, hardware=hardware, name="vllm")
    config = backend.config
    assert (backend.name, backend.model_name, config.tp_size) == ("vllm", "some/model", 2)
    assert (config.num_nodes, config.num_gpus, config.offset) == (1, 4, 3)
    assert config.sections == {
        "required": {"hf_token": "a-secret"},
        "llm": {"max_model_len": 128},
    }
    assert "a-secret" not in repr(config)


def test_configuration_objects_and_parameters_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="'tp_size' and 'model' exclude each other"):
        DragonVllmInferenceBackend(model=ModelConfig("m"), tp_size=2)
    with pytest.raises(ConfigurationError, match="pass model=ModelConfig"):
        DragonVllmInferenceBackend(None, "m", hardware=HardwareConfig())


async def test_backend_with_configuration_objects_serves() -> None:
    backend = DragonVllmInferenceBackend(
        model=ModelConfig("tiny", max_model_len=512),
        hardware=HardwareConfig(num_gpus=0),
        batching=BatchingConfig(),
        guardrails=GuardrailsConfig(enabled=False),
        dynamic_worker=DynamicWorkerConfig(enabled=False),
        engine="embedded",
        launcher="local",
        use_service=False,
    )
    async with backend:
        assert await backend.generate("Hello", max_tokens=2)


def test_stopped_backend_has_no_endpoint_and_no_replicas() -> None:
    backend = embedded(use_service=True)
    assert backend.get_endpoint() is None
    assert backend.replicas == []
    assert backend.get_statistics() == {}


def test_repr_hides_the_key() -> None:
    assert "a-secret" not in repr(vars(embedded(api_key="a-secret")))


def test_key_defaults_to_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "from-variable")
    assert embedded().config.api_key == "from-variable"
    assert embedded(api_key="given").config.api_key == "given"
    monkeypatch.delenv("RHAPSODY_API_KEY")
    assert embedded().config.api_key is None


def test_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "from-variable")
    with pytest.raises(ConfigurationError, match="'api_key' must be non-empty text"):
        embedded(api_key="")
    monkeypatch.setenv("RHAPSODY_API_KEY", "")
    with pytest.raises(ConfigurationError, match="RHAPSODY_API_KEY"):
        embedded()
    assert embedded(api_key="given").config.api_key == "given"


async def test_embedded_model_has_no_adapters(tmp_path: Path) -> None:
    async with embedded() as backend:
        with pytest.raises(ConfigurationError, match="the embedded model has no weights"):
            await backend.load_adapter("tuned", tmp_path)
        with pytest.raises(UnsupportedTaskError, match="has no adapter 'tuned', it has none"):
            await backend.run_one({"prompt": "hi", "adapter": "tuned"})
