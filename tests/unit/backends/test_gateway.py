"""The parameters of the inference gateway; tests/integration/inference has it at work."""

import pytest

from rhapsody.backends import InferenceGateway, NoopExecutionBackend
from rhapsody.errors import ConfigurationError
from tests.support.inference import embedded


def test_gateway_without_backends_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs at least one backend"):
        InferenceGateway([])


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a name of its own, got tiny, tiny"):
        InferenceGateway([embedded(), embedded(name="other")])


def test_other_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="class DragonVllmInferenceBackend, got"):
        InferenceGateway([NoopExecutionBackend()])  # type: ignore[list-item]


def test_gateway_that_does_not_run_has_no_endpoint() -> None:
    gateway = InferenceGateway([embedded()])
    assert gateway.get_endpoint() is None
    assert gateway.get_statistics()["replicas"] == []
    assert gateway.state() == "IDLE"


def test_key_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
    assert InferenceGateway([embedded()]).config.api_key == "secret"
