"""The configuration: what cannot be is refused in one sentence, before any process starts."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import ConfigurationError, MissingExtraError, ResourceError
from rhapsody.inference.config import CLAIMS, InferenceConfig, check_port, read_config_file


def config(**changes: Any) -> InferenceConfig:
    fields = {
        "model_name": "tiny",
        "engine": "embedded",
        "launcher": "local",
        "host": "127.0.0.1",
        "port": 0,
    }
    return InferenceConfig(**{**fields, **changes})


def refusal(**changes: Any) -> str:
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
    ("field", "value", "says"),
    [
        ("model_name", "", "model_name must be the name or path of a model, not ''"),
        ("model_name", 7, "model_name must be the name or path of a model, not 7"),
        ("num_nodes", 0, "num_nodes must be at least 1, not 0"),
        ("num_nodes", "2", "num_nodes must be a whole number, not '2'"),
        ("num_gpus", -1, "num_gpus must be at least 0, not -1"),
        ("num_gpus", 1.5, "num_gpus must be a whole number, not 1.5"),
        ("tp_size", True, "tp_size must be a whole number, not True"),
        ("offset", -1, "offset must be at least 0, not -1"),
        ("port", 70000, "port must be at most 65535, not 70000"),
        ("port", "8000", "port must be a whole number, not '8000'"),
        ("host", 1, "host must be a name or an address, not 1"),
        ("use_service", "yes", "use_service must be True or False, not 'yes'"),
        ("max_batch_size", 0, "max_batch_size must be at least 1, not 0"),
        ("max_batch_wait_ms", float("nan"), "max_batch_wait_ms must be at least 0, not nan"),
        ("max_batch_wait_ms", None, "max_batch_wait_ms must be a number, not None"),
        ("max_pending", 0, "max_pending must be at least 1, not 0"),
        ("max_retries", -1, "max_retries must be at least 0, not -1"),
        ("max_restarts", -1, "max_restarts must be at least 0, not -1"),
        ("startup_timeout", 0, "startup_timeout must be at least 0.1, not 0"),
        ("health_interval", 0, "health_interval must be at least 0.05, not 0"),
        ("config_file", 7, "config_file must be a path, not 7"),
        ("engine", "sglang", "engine must be 'vllm' or 'embedded', not 'sglang'"),
        ("launcher", "slurm", "launcher must be 'dragon' or 'local', not 'slurm'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: Any, says: str) -> None:
    assert refusal(**{field: value}) == says


@pytest.mark.parametrize("key", ["two words", "line\n", "", 7])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: Any) -> None:
    message = refusal(api_key=key)
    assert message == "api_key must be text without spaces and line breaks"


def test_more_gpus_for_a_replica_than_a_node_has_are_refused() -> None:
    assert "tp_size=4" in refusal(tp_size=4, num_gpus=2)
    assert "num_gpus=2" in refusal(tp_size=4, num_gpus=2)


def test_a_replica_on_the_cpu_spans_no_gpus() -> None:
    assert "tp_size must be 1, not 2" in refusal(num_gpus=0, tp_size=2)


@pytest.mark.parametrize("launcher", [None, "dragon"])
@pytest.mark.dragon
def test_without_the_dragon_command_it_says_how_to_start(
    launcher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRAGON_MY_PUID", raising=False)
    message = refusal(launcher=launcher)
    assert "start it with: dragon my_script.py" in message
    assert "launcher='local'" in message


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsody.inference.config.server_root", lambda: None)
    with pytest.raises(MissingExtraError, match=r"rhapsody\[vllm-dragon\]"):
        config(engine="vllm", num_gpus=0).check()


def test_a_mistake_in_a_file_is_told_without_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("hf-token: hf_secret\n  dtype: [auto\n")
    message = refusal(config_file=path)
    assert "is no YAML" in message
    assert "line 2" in message
    assert "hf_secret" not in message


@pytest.mark.parametrize("place", [{"num_nodes": 2}, {"offset": 1}])
def test_the_local_launcher_has_one_node(place: dict[str, int]) -> None:
    assert "launcher='local' has this one node" in refusal(**place)


def test_a_port_in_use_is_refused_with_what_to_do(taken_port: int) -> None:
    message = refusal(port=taken_port)
    assert f"127.0.0.1, port {taken_port}" in message
    assert "choose another port=" in message


def test_engine_mode_looks_at_no_port(taken_port: int) -> None:
    config(port=taken_port, use_service=False).check()


def test_a_host_that_is_not_ours_is_refused_with_what_to_do() -> None:
    with pytest.raises(ResourceError, match="choose a host="):
        check_port("192.0.2.1", 8000)  # kept for documentation, nobody's address


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert refusal(config_file=str(path)) == (
        f"config_file {str(path)!r} cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("content", [b"a: [1,\nb: 2", b"\xff\xfe\x00"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert refusal(config_file=str(path)).startswith(f"config_file {str(path)!r} is no YAML: ")


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- a\n- b\n")
    assert "must hold 'key: value' lines, not a list" in refusal(config_file=path)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_num_seq: 4\n")
    assert "unknown key 'max-num-seq'; did you mean 'max-num-seqs'?" in refusal(config_file=path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max-num-seqs: many", "max-num-seqs must be a whole number, not 'many'"),
        ("max-num-seqs: 0", "max-num-seqs must be at least 1, not 0"),
        ("seed:", "seed must be a whole number, not None"),
        ("token-delay-ms: -1", "token-delay-ms must be at least 0, not -1"),
    ],
)
def test_a_wrong_value_in_a_file_is_refused_by_its_key(
    tmp_path: Path, line: str, says: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(line)
    assert refusal(config_file=path) == f"config_file {str(path)!r}: {says}"


def test_keys_are_read_with_dashes_or_underscores(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_num_seqs: 4\ntoken-delay-ms: 1.5\n")
    command = config(config_file=path).check().command
    assert command[-4:] == ["--max-num-seqs", "4", "--token-delay-ms", "1.5"]


def test_no_file_and_an_empty_file_have_no_options(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    assert read_config_file(None) == read_config_file(path) == {}


@pytest.mark.parametrize(
    ("num_gpus", "tp_size", "replicas"), [(0, 1, 1), (1, 1, 1), (4, 1, 4), (4, 2, 2), (5, 2, 2)]
)
def test_a_node_has_as_many_replicas_as_its_gpus_allow(
    num_gpus: int, tp_size: int, replicas: int
) -> None:
    places = config(num_gpus=num_gpus, tp_size=tp_size).places()
    CLAIMS.release(places)
    assert len(places) == replicas


def test_no_host_is_this_machines_name() -> None:
    assert config(host=None).bind_address() in (socket.gethostname(), None)


def test_the_key_is_not_shown() -> None:
    assert "hidden" not in repr(config(api_key="hidden"))
