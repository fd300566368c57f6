"""The configuration: invalid values and combinations are refused in one sentence."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError, MissingExtraError, ResourceError
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.replicas.placement import CLAIMS


def config(**changes: Any) -> InferenceConfig:
    fields = {
        "model_name": "tiny",
        "engine": "embedded",
        "launcher": "local",
        "host": "127.0.0.1",
        "port": 0,
    }
    return InferenceConfig(**{**fields, **changes})


def error_message(**changes: Any) -> str:
    with pytest.raises((ConfigurationError, ResourceError)) as refused:
        config(**changes).check()
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_name", "", "'model_name' must be the name or path of a model, got ''"),
        ("model_name", 7, "'model_name' must be the name or path of a model, got 7"),
        ("num_nodes", 0, "'num_nodes' must be a whole number of at least 1, got 0"),
        ("num_nodes", "2", "'num_nodes' must be a whole number of at least 1, got '2'"),
        ("num_gpus", -1, "'num_gpus' must be a whole number of at least 0, got -1"),
        ("num_gpus", 1.5, "'num_gpus' must be a whole number of at least 0, got 1.5"),
        ("tp_size", True, "'tp_size' must be a whole number of at least 1, got True"),
        ("offset", -1, "'offset' must be a whole number of at least 0, got -1"),
        ("port", 70000, "'port' must be a whole number from 0 to 65535, got 70000"),
        ("port", "8000", "'port' must be a whole number from 0 to 65535, got '8000'"),
        ("host", 1, "'host' must be a host name or an address, got 1"),
        ("use_service", "yes", "'use_service' must be a boolean, got 'yes'"),
        ("max_batch_size", 0, "'max_batch_size' must be a whole number of at least 1, got 0"),
        (
            "max_batch_wait_ms",
            float("nan"),
            "'max_batch_wait_ms' must be a number of at least 0, got nan",
        ),
        ("max_batch_wait_ms", None, "'max_batch_wait_ms' must be a number of at least 0, got None"),
        ("max_pending", 0, "'max_pending' must be a whole number of at least 1, got 0"),
        ("max_retries", -1, "'max_retries' must be a whole number of at least 0, got -1"),
        ("max_restarts", -1, "'max_restarts' must be a whole number of at least 0, got -1"),
        ("startup_timeout", 0, "'startup_timeout' must be a number of at least 0.1, got 0"),
        ("health_interval", 0, "'health_interval' must be a number of at least 0.05, got 0"),
        ("config_file", 7, "'config_file' must be a path, got 7"),
        ("engine", "sglang", "'engine' must be 'vllm' or 'embedded', got 'sglang'"),
        (
            "cors_origins",
            ["app.example"],
            "'cors_origins' must be a list of origins such as 'https://app.example', or ['*'] for "
            "all, got ['app.example']",
        ),
        ("launcher", "slurm", "'launcher' must be 'dragon' or 'local', got 'slurm'"),
    ],
)
def test_invalid_value_names_its_parameter(field: str, value: Any, message: str) -> None:
    assert error_message(**{field: value}) == message


@pytest.mark.parametrize("key", ["two words", "line\n", "", 7])
def test_invalid_api_key_is_not_shown(key: Any) -> None:
    message = error_message(api_key=key)
    assert message.startswith("'api_key' must be non-empty text without spaces and line breaks")
    assert "RHAPSODY_API_KEY" in message
    assert "got" not in message


def test_tp_size_above_num_gpus_is_refused() -> None:
    assert "tp_size=4" in error_message(tp_size=4, num_gpus=2)
    assert "num_gpus=2" in error_message(tp_size=4, num_gpus=2)


def test_tp_size_on_cpu_must_be_1() -> None:
    assert "tp_size must be 1, not 2" in error_message(num_gpus=0, tp_size=2)


@pytest.mark.parametrize("launcher", [None, "dragon"])
@pytest.mark.parametrize("installed", [True, False])
def test_missing_dragon_runtime_says_how_to_start(
    launcher: str | None, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRAGON_MY_PUID", raising=False)
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda *names: None)
    message = error_message(launcher=launcher)
    assert "start it with: dragon my_script.py" in message
    assert "launcher='local'" in message


def test_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody.inference.config.server_root", lambda: None)
    with pytest.raises(MissingExtraError, match=r"\.\[vllm-dragon\]"):
        config(engine="vllm", num_gpus=0).check()


@pytest.mark.parametrize("place", [{"num_nodes": 2}, {"offset": 1}])
def test_local_launcher_has_one_node(place: dict[str, int]) -> None:
    assert "launcher='local' serves on this machine only" in error_message(**place)


def test_port_in_use_is_refused(taken_port: int) -> None:
    message = error_message(port=taken_port)
    assert f"127.0.0.1, port {taken_port}" in message
    assert "choose another port=" in message


def test_engine_mode_ignores_the_port(taken_port: int) -> None:
    config(port=taken_port, use_service=False).check()


def test_file_reaches_the_command(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_num_seqs: 4\ntoken-delay-ms: 1.5\n")
    command = config(config_file=path).check().arguments
    assert command[-4:] == ["--max-num-seqs", "4", "--token-delay-ms", "1.5"]


@pytest.mark.parametrize(
    ("num_gpus", "tp_size", "replicas"), [(0, 1, 1), (1, 1, 1), (4, 1, 4), (4, 2, 2), (5, 2, 2)]
)
def test_replicas_per_node_follow_from_gpus(num_gpus: int, tp_size: int, replicas: int) -> None:
    made = config(num_gpus=num_gpus, tp_size=tp_size)
    places = made.places(made.nodes())
    CLAIMS.release(places)
    assert len(places) == replicas


def test_default_address_is_host_name() -> None:
    assert config(host=None).bind_address() in (socket.gethostname(), None)


def test_repr_hides_api_key() -> None:
    assert "hidden" not in repr(config(api_key="hidden"))


@pytest.mark.parametrize("replicas", [0, -1, (0, 0), (3, 2), (-1, 2), (1, 2, 3), "1:4", 1.5])
def test_invalid_replicas_are_refused(replicas: Any) -> None:
    with pytest.raises(ConfigurationError, match="'replicas' must be a whole number of at least 1"):
        config(replicas=replicas)


def test_pair_of_replicas_in_the_wrong_order_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError) as raised:
        config(replicas=(3, 1))
    assert str(raised.value) == (
        "'replicas' must be a whole number of at least 1, or a pair (fewest, most) such as (0, 4) "
        "whose second number is at least 1 and not below the first, got (3, 1)"
    )


@pytest.mark.parametrize(
    ("replicas", "bounds", "elastic"),
    [(None, (4, 4), False), (3, (3, 3), False), ((0, 2), (0, 2), True), ((2, 2), (2, 2), False)],
)
def test_bounds_of_replicas(replicas: Any, bounds: tuple[int, int], elastic: bool) -> None:
    made = config(replicas=replicas, num_gpus=4)
    assert made.bounds == bounds
    assert made.is_elastic == elastic


def test_first_replicas_are_the_fewest() -> None:
    made = config(replicas=(2, 4))
    assert len(made.places(made.nodes())) == 2


@pytest.mark.vllm
def test_more_replicas_than_gpus_are_refused() -> None:
    message = error_message(engine="vllm", replicas=(0, 3), num_gpus=4, tp_size=2)
    assert "replicas=(0, 3) of tp_size=2 need more GPUs than num_gpus=4 on num_nodes=1" in message


@pytest.mark.parametrize(
    ("changes", "ranks", "gpus", "replicas"),
    [
        ({"num_nodes": 4, "num_gpus": 4, "tp_size": 8}, 2, 4, 2),
        ({"num_nodes": 4, "num_gpus": 4, "tp_size": 4, "nodes_per_replica": 2}, 2, 2, 4),
        ({"num_nodes": 2, "num_gpus": 0, "tp_size": 2, "nodes_per_replica": 2}, 2, 0, 1),
        ({"num_nodes": 1, "num_gpus": 4, "tp_size": 2}, 1, 2, 2),
    ],
)
def test_ranks_of_a_replica(changes: dict[str, int], ranks: int, gpus: int, replicas: int) -> None:
    made = config(engine="vllm", launcher="dragon", **changes)
    assert (made.ranks, made.gpus_per_rank, made.bounds[1]) == (ranks, gpus, replicas)
    made._check_ranks()
    made._check_most_replicas()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 1, "nodes_per_replica": 2, "tp_size": 2}, "must not exceed num_nodes=1"),
        ({"num_nodes": 2, "nodes_per_replica": 2, "tp_size": 3}, "must be a multiple of the nodes"),
        (
            {"num_nodes": 2, "nodes_per_replica": 2, "tp_size": 8, "num_gpus": 2},
            "needs 4 GPUs on each, and num_gpus is 2",
        ),
        (
            {"num_nodes": 2, "nodes_per_replica": 2, "tp_size": 4, "num_gpus": 0},
            "tp_size must be 2, as nodes_per_replica is, not 4",
        ),
        ({"engine": "embedded", "nodes_per_replica": 2}, "runs in one process"),
    ],
)
def test_impossible_ranks_are_refused(changes: dict[str, Any], message: str) -> None:
    made = config(**{"engine": "vllm", "launcher": "dragon", **changes})
    with pytest.raises(ConfigurationError, match=message):
        made._check_ranks()
