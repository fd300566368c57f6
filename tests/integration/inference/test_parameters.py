"""The parameters that the specification lists, with its defaults."""

import inspect
import socket
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import ConfigurationError, ReplicaError, ResourceError
from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.inference import engines
from tests.support.inference import MODEL, embedded

REQUIRED = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("config_file", REQUIRED),
        ("model_name", REQUIRED),
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
def test_each_parameter_has_its_default(name: str, default: Any) -> None:
    parameters = inspect.signature(DragonVllmInferenceBackend).parameters
    assert parameters[name].default == default
    assert parameters[name].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD


async def test_server_mode_answers_at_its_endpoint(start: Any) -> None:
    backend = await start(use_service=True)
    endpoint = backend.get_endpoint()
    assert endpoint is not None
    assert endpoint.startswith("http://127.0.0.1:")


async def test_engine_mode_has_no_endpoint(start: Any) -> None:
    backend = await start(use_service=False)
    assert backend.get_endpoint() is None


def test_a_backend_that_does_not_run_has_no_endpoint_and_no_replicas() -> None:
    backend = embedded(use_service=True)
    assert backend.get_endpoint() is None
    assert backend.replicas == []


async def test_the_port_asked_for_is_the_one_served(start: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = await start(use_service=True, port=port)
    assert backend.get_endpoint() == f"http://127.0.0.1:{port}"


async def test_a_taken_port_fails_before_any_server_starts(start: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match="choose another port="):
            await start(use_service=True, port=taken.getsockname()[1])


async def test_a_missing_file_fails_before_any_server_starts(start: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await start(config_file=str(tmp_path / "absent.yaml"))


async def test_as_many_servers_as_the_gpus_allow(start: Any) -> None:
    backend = await start(num_gpus=4, tp_size=2)
    assert [replica["state"] for replica in backend.replicas] == ["READY", "READY"]


async def test_a_configuration_file_reaches_the_server(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_model_len: 32\n")
    backend = await start(config_file=str(path))
    with pytest.raises(Exception, match="32"):
        await backend.generate(["word " * 100])


async def test_a_server_that_dies_at_start_is_told_with_its_last_words(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.embedded(MODEL, {"fail-at-start": "out of everything"})
    monkeypatch.setattr(engines, "embedded", lambda *_: engine)
    with pytest.raises(ReplicaError, match="exited with code 1 while it started") as failed:
        await start(startup_timeout=30)
    assert "out of everything" in failed.value.log_tail
    assert "out of everything" in str(failed.value)


async def test_a_server_that_is_not_ready_in_time_is_ended(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.embedded(MODEL, {"start-delay-ms": 60_000})
    monkeypatch.setattr(engines, "embedded", lambda *_: engine)
    with pytest.raises(ReplicaError, match=r"was not ready within 0\.5 s"):
        await start(startup_timeout=0.5)


async def test_a_program_that_is_not_there_is_told(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "embedded", lambda *_: engines.Engine(["/no/such/program"]))
    with pytest.raises(ReplicaError, match="could not be started: "):
        await start()
