"""The choice of an inference backend by the model and by what is there."""

import logging
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody.allocation import Node
from rhapsody.backends import DragonVllmInferenceBackend, EndpointInferenceBackend, choice
from rhapsody.errors import ConfigurationError, MissingExtraError


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A machine with vLLM and two GPUs, and a program that dragon did not start."""
    monkeypatch.setattr(choice, "server_root", lambda: Path("/vllm"))
    monkeypatch.setattr(choice, "local_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(choice, "is_under_dragon", lambda: False)
    caplog.set_level(logging.INFO, choice.__name__)


@pytest.mark.parametrize(
    ("model", "urls"),
    [
        ("http://host:8000/v1", ["http://host:8000/v1"]),
        ("https://host/", ["https://host/v1"]),
        (["http://a:1", "http://b:1/v1/"], ["http://a:1/v1", "http://b:1/v1"]),
    ],
)
def test_url_is_an_endpoint(model: Any, urls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    backend = rhapsody.inference_backend(model, model="m", max_concurrency=2)
    assert isinstance(backend, EndpointInferenceBackend)
    assert backend.config.urls == urls
    assert backend.config.max_concurrency == 2
    assert "because the model is given by a URL" in caplog.messages[0]


def test_embedded_model_needs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    backend = rhapsody.inference_backend("embedded", name="toy")
    assert isinstance(backend, DragonVllmInferenceBackend)
    config = backend.config
    assert (config.engine, config.launcher, config.use_service) == ("embedded", "local", False)
    assert backend.name == "toy"
    assert caplog.messages == [
        "inference_backend: 'embedded' on the embedded engine, launcher 'local', on the CPU, "
        "because the model is 'embedded'; the dragon command did not start the program"
    ]


def test_model_is_served_by_vllm_on_the_gpus_there(caplog: pytest.LogCaptureFixture) -> None:
    config = rhapsody.inference_backend("Qwen/Qwen3-0.6B").config
    assert (config.engine, config.launcher, config.num_gpus) == ("vllm", "local", 2)
    assert "2 GPUs on a node, because vLLM is installed; the dragon" in caplog.messages[0]


def test_without_gpus_the_cpu_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "local_gpus", lambda: ())
    assert rhapsody.inference_backend("m").config.num_gpus == 0


def test_dragon_places_servers_on_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node("a", 1, ("0", "1", "2", "3"), "X", True), Node("b", 1, ("0", "1"), "X", False)]
    monkeypatch.setattr(choice, "is_under_dragon", lambda: True)
    monkeypatch.setattr(choice, "allocation", lambda: nodes)
    config = rhapsody.inference_backend("m", num_nodes=2).config
    assert (config.launcher, config.num_gpus, config.num_nodes) == ("dragon", 2, 2)


def test_options_take_precedence(caplog: pytest.LogCaptureFixture) -> None:
    config = rhapsody.inference_backend(
        "m", engine="embedded", launcher="local", use_service=True, port=0
    ).config
    assert (config.engine, config.use_service, config.model_name) == ("embedded", True, "m")
    assert "because engine= was given" in caplog.messages[0]
    assert rhapsody.inference_backend("m", num_gpus=1).config.num_gpus == 1


def test_missing_vllm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "server_root", lambda: None)
    with pytest.raises(MissingExtraError, match=r"inference_backend\('m'\) needs the package"):
        rhapsody.inference_backend("m")


@pytest.mark.parametrize("model", ["", [], [1], ["http://a:1", "m"], 7])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises((ConfigurationError, TypeError)):
        rhapsody.inference_backend(model)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="num_gpu"):
        rhapsody.inference_backend("m", num_gpu=1)
