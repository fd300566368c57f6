"""The parameters of the inference backend, on real servers."""

import socket
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError, ReplicaError, ResourceError
from rhapsody.inference import engines
from tests.support.inference import MODEL


async def test_server_mode_has_an_endpoint(start: Any) -> None:
    backend = await start(use_service=True)
    endpoint = backend.get_endpoint()
    assert endpoint is not None
    assert endpoint.startswith("http://127.0.0.1:")


async def test_engine_mode_has_no_endpoint(start: Any) -> None:
    backend = await start(use_service=False)
    assert backend.get_endpoint() is None


async def test_requested_port_is_used(start: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = await start(use_service=True, port=port)
    assert backend.get_endpoint() == f"http://127.0.0.1:{port}"


async def test_port_in_use_fails_the_start(start: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match="choose another port="):
            await start(use_service=True, port=taken.getsockname()[1])


async def test_missing_file_fails_the_start(start: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await start(config_file=str(tmp_path / "absent.yaml"))


async def test_number_of_servers_follows_from_gpus(start: Any) -> None:
    backend = await start(num_gpus=4, tp_size=2)
    assert [replica["state"] for replica in backend.replicas] == ["READY", "READY"]


async def test_configuration_file_reaches_the_server(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_model_len: 32\n")
    backend = await start(config_file=str(path))
    with pytest.raises(Exception, match="32"):
        await backend.generate(["word " * 100])


async def test_exit_during_start_shows_last_log_lines(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.embedded(MODEL, {"fail-at-start": "out of everything"})
    monkeypatch.setattr(engines, "embedded", lambda *_: engine)
    with pytest.raises(ReplicaError, match="exited with code 1 while it started") as failed:
        await start(startup_timeout=30)
    assert "out of everything" in failed.value.log_tail
    assert "out of everything" in str(failed.value)


async def test_slow_start_times_out(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.embedded(MODEL, {"start-delay-ms": 60_000})
    monkeypatch.setattr(engines, "embedded", lambda *_: engine)
    with pytest.raises(ReplicaError, match=r"was not ready within 0\.5 s"):
        await start(startup_timeout=0.5)


async def test_missing_program_fails_the_start(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "embedded", lambda *_: engines.ServerCommand(["/no/such/program"]))
    with pytest.raises(ReplicaError, match="could not be started: "):
        await start()
