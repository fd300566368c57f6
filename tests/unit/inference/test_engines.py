"""The commands that start servers."""

import itertools
import re
import sys

import pytest

from rhapsody.inference import engines
from rhapsody.inference.vllm.versions import Arguments

KNOWN = Arguments(switches=frozenset({"headless", "disable-log-stats"}))


def test_embedded_model_runs_in_this_python() -> None:
    command = engines.embedded("tiny", {})
    assert command.arguments == [
        sys.executable,
        "-m",
        "rhapsody.inference.embedded",
        "--model",
        "tiny",
    ]
    assert command.limit == 256


def test_embedded_options_become_arguments() -> None:
    command = engines.embedded("tiny", {"max-num-seqs": 4, "token-delay-ms": 1.5})
    assert command.arguments[-4:] == ["--max-num-seqs", "4", "--token-delay-ms", "1.5"]
    assert command.limit == 4


def vllm_arguments(**options: object) -> list[str]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return engines.vllm("some/model", 2, named, KNOWN).arguments


def test_vllm_is_stock_serve_with_batch_route() -> None:
    command = vllm_arguments()
    assert command[:5] == [
        *(sys.executable, "-m", "rhapsody.inference.vllm.server"),
        *("serve", "some/model"),
    ]
    for pair in (
        ("--served-model-name", "some/model"),
        ("--tensor-parallel-size", "2"),
        ("--middleware", "rhapsody.inference.vllm.batch_route.BatchRoute"),
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
def test_yaml_value_becomes_arguments(value: object, arguments: list[str]) -> None:
    command = engines.vllm("m", 1, {"key": value}, KNOWN).arguments
    access_log = command.index("--disable-uvicorn-access-log")
    assert command[command.index("--middleware") + 2 : access_log] == arguments


def test_false_is_left_out_for_switches_without_negation() -> None:
    command = engines.vllm("m", 1, {"disable-log-stats": False}, KNOWN).arguments
    assert not any("disable-log-stats" in argument for argument in command)


def test_token_is_passed_by_environment_only() -> None:
    command = engines.vllm("m", 1, {"hf-token": "hf_secret"}, KNOWN)
    assert command.environment["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in str(command.arguments)
    assert "hf_secret" not in repr(command)


def test_dragon_plugins_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    environment = engines.vllm("m", 1, {}, KNOWN).environment
    assert "dragon" not in environment["VLLM_PLUGINS"]
    assert environment["DRAGON_PATCH_MP"] == ""


def test_log_level_is_passed_by_environment() -> None:
    command = engines.vllm("m", 1, {"log-level": "warning"}, KNOWN)
    assert command.environment["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert "--log-level" not in command.arguments


def media_domains(known: Arguments, **options: object) -> list[str]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    command = engines.vllm("m", 1, named, known).arguments
    flags = [number for number, value in enumerate(command) if value == "--allowed-media-domains"]
    rest = command[flags[0] + 1 :] if flags else []
    return list(itertools.takewhile(lambda value: not value.startswith("--"), rest))


@pytest.mark.parametrize("options", [{}, {"allowed_media_domains": []}])
def test_media_are_fetched_from_no_domain_by_default(options: dict[str, object]) -> None:
    assert media_domains(KNOWN, **options) == ["set-allowed-media-domains.invalid"]
    assert engines.vllm("m", 1, {}, KNOWN).environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_media_are_fetched_from_allowed_domains() -> None:
    assert media_domains(KNOWN, allowed_media_domains=["example.org"]) == ["example.org"]


def test_option_that_the_installed_vllm_lacks_is_not_passed() -> None:
    assert media_domains(Arguments(names=frozenset({"dtype"}))) == []


def test_advice_about_memory_is_for_the_cpu() -> None:
    assert not engines.vllm("some/model", 1, {}, KNOWN).advice
    [(pattern, advice)] = engines.vllm("some/model", 1, {}, KNOWN, on_cpu=True).advice.items()
    assert re.search(pattern, "ValueError: No available memory for the cache blocks.")
    assert "VLLM_CPU_KVCACHE_SPACE" in advice


@pytest.mark.parametrize(("name", "fetches"), [("dtype", True), ("allowed-media-domains", False)])
def test_server_without_the_option_counts_as_fetching_media(name: str, *, fetches: bool) -> None:
    command = engines.vllm("some/model", 1, {}, Arguments(names=frozenset({name})))
    assert command.fetches_media is fetches


@pytest.mark.parametrize(
    ("options", "has_priorities"), [({}, True), ({"scheduling-policy": "fcfs"}, False)]
)
def test_vllm_runs_with_priorities_unless_set_otherwise(
    options: dict[str, object], *, has_priorities: bool
) -> None:
    command = engines.vllm("some/model", 1, options, KNOWN)
    at = command.arguments.index("--scheduling-policy")
    assert (command.arguments[at + 1] == "priority") is has_priorities
    assert command.has_priorities is has_priorities
