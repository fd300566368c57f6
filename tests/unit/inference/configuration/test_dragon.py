"""Configuration objects of `rhapsody-py` programs, as parameters and sections."""

from dataclasses import dataclass
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.errors import ConfigurationError
from rhapsody.inference.configuration import dragon
from rhapsody.inference.configuration.dragon import (
    BatchingConfig,
    DynamicWorkerConfig,
    GuardrailsConfig,
    HardwareConfig,
    ModelConfig,
    model_parameters,
)


def sections_of(*objects: Any) -> Any:
    model, *others = objects
    return model_parameters({}, model, HardwareConfig(1, 1), *others)["sections"]


def test_all_gpus_of_this_machine_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dragon, "this_machine", lambda: Node("here", gpus=(0, 1)))
    found = model_parameters({}, ModelConfig("m", tp_size=2), local=True)
    assert (found["num_nodes"], found["num_gpus"], found["tp_size"]) == (1, 2, 2)


def test_all_nodes_after_the_offset_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node("a", gpus=(0, 1, 2)), Node("b", gpus=(0, 1)), Node("c", gpus=(0,))]
    monkeypatch.setattr(dragon, "is_under_dragon", lambda: True)
    monkeypatch.setattr(dragon, "allocation", lambda: nodes)
    found = model_parameters({}, ModelConfig("m"), HardwareConfig(node_offset=1))
    assert (found["offset"], found["num_nodes"], found["num_gpus"]) == (1, 2, 1)


def test_object_of_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'model' must be a ModelConfig of rhapsody"):
        model_parameters({}, "Qwen/Qwen2.5-0.5B")
    with pytest.raises(ConfigurationError, match="'hardware' must be a HardwareConfig"):
        model_parameters({}, ModelConfig("m"), {"num_gpus": 1})


def test_only_values_that_were_set_become_sections() -> None:
    assert sections_of(ModelConfig("m", tp_size=4)) == {}
    found = sections_of(ModelConfig("m", hf_token="t", temperature=0.0, dtype="float16"))
    assert found == {
        "required": {"hf_token": "t"},
        "llm": {"temperature": 0.0, "dtype": "float16"},
    }


def test_dataclass_of_another_package_is_accepted() -> None:
    @dataclass
    class Theirs:
        model_name: str
        tp_size: int = 1
        dtype: str = "bfloat16"
        max_tokens: int = 100

    assert sections_of(Theirs("m", max_tokens=7)) == {"llm": {"max_tokens": 7}}


def test_settings_without_effect_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    sections_of(
        ModelConfig("m"), BatchingConfig(batch_type="dynamic"), None, DynamicWorkerConfig(True)
    )
    [record] = caplog.records
    assert "no effect: batching.batch_type, dynamic_worker.enabled" in record.message


def test_enabled_guardrails_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="prompts would not be filtered"):
        sections_of(ModelConfig("m"), None, GuardrailsConfig(enabled=True))
