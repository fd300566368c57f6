"""Engines as commands."""

import sys

import pytest

from rhapsody.inference import engines
from rhapsody.inference.vllm.versions import Arguments

KNOWN = Arguments(switches=frozenset({"headless", "disable-log-stats"}))


def test_the_embedded_model_runs_in_this_python() -> None:
    engine = engines.embedded("tiny", {})
    assert engine.command == [
        sys.executable,
        "-m",
        "rhapsody.inference.embedded",
        "--model",
        "tiny",
    ]
    assert engine.limit == 256


def test_options_become_arguments() -> None:
    engine = engines.embedded("tiny", {"max-num-seqs": 4, "token-delay-ms": 1.5})
    assert engine.command[-4:] == ["--max-num-seqs", "4", "--token-delay-ms", "1.5"]
    assert engine.limit == 4


def vllm_arguments(**options: object) -> list[str]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return engines.vllm("some/model", 2, named, KNOWN).command


def test_vllm_is_a_stock_serve_with_the_batch_route() -> None:
    command = vllm_arguments()
    assert command[:5] == [
        *(sys.executable, "-m", "rhapsody.inference.vllm.server"),
        *("serve", "some/model"),
    ]
    for pair in (
        ("--served-model-name", "some/model"),
        ("--tensor-parallel-size", "2"),
        ("--middleware", "rhapsody.inference.worker.BatchRoute"),
    ):
        at = command.index(pair[0])
        assert command[at + 1] == pair[1]


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (1024, ["--key", "1024"]),
        ("auto", ["--key", "auto"]),
        (0.9, ["--key", "0.9"]),
        (True, ["--key"]),
        (False, ["--no-key"]),
        ({"a": {"b": True}}, ["--key", '{"a": {"b": true}}']),
        ([1, "two"], ["--key", "1", "two"]),
        ([], []),
        (None, []),
    ],
)
def test_a_value_of_yaml_becomes_what_the_command_line_takes(
    value: object, arguments: list[str]
) -> None:
    command = engines.vllm("m", 1, {"key": value}, KNOWN).command
    access_log = command.index("--disable-uvicorn-access-log")
    assert command[command.index("--middleware") + 2 : access_log] == arguments


def test_what_can_only_be_switched_on_is_left_out_when_it_is_off() -> None:
    command = engines.vllm("m", 1, {"disable-log-stats": False}, KNOWN).command
    assert not any("disable-log-stats" in argument for argument in command)


def test_a_token_goes_by_environment_and_is_shown_nowhere() -> None:
    engine = engines.vllm("m", 1, {"hf-token": "hf_secret"}, KNOWN)
    assert engine.environment["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in str(engine.command)
    assert "hf_secret" not in repr(engine)


def test_dragons_plugins_are_left_out_of_a_stock_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    environment = engines.vllm("m", 1, {}, KNOWN).environment
    assert "dragon" not in environment["VLLM_PLUGINS"]
    assert environment["DRAGON_PATCH_MP"] == ""


def test_the_log_level_of_dragons_layout_is_the_servers() -> None:
    engine = engines.vllm("m", 1, {"log-level": "warning"}, KNOWN)
    assert engine.environment["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert "--log-level" not in engine.command
