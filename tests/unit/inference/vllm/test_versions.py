"""What depends on vLLM's version: options from its sources, plugins, statuses of errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference import engines
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import (
    Arguments,
    ai_kinds,
    arguments_known,
    error_status,
    plugins_except,
    server_root,
)

ARG_UTILS = """
group.add_argument("--max-model-len", **kwargs)
group.add_argument("--headless", action="store_true", help="--not-one, says the help")
"""
CLI_ARGS = """
class FrontendArgs:
    host: str | None = None
    chat_template: str | None = None
    def add(self): ...
"""


def write_sources(root: Path, **texts: str) -> None:
    """Write source files, given their texts by their paths without ".py"."""
    for name, text in texts.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("folder", ["openai", "launchers", "common", "next/version"])
def test_options_are_read_from_the_sources(tmp_path: Path, folder: str) -> None:
    cli_args = {f"entrypoints/{folder}/cli_args": CLI_ARGS}
    write_sources(tmp_path, **{"engine/arg_utils": ARG_UTILS}, **cli_args)
    known = arguments_known(tmp_path)
    assert known.names == {"max-model-len", "headless", "host", "chat-template"}
    assert known.switches == {"headless"}


@pytest.mark.parametrize(
    "sources",
    [{"engine/arg_utils": ARG_UTILS}, {"entrypoints/common/cli_args": CLI_ARGS}],
    ids=["without frontend", "without engine"],
)
def test_missing_source_leaves_all_names_to_vllm(tmp_path: Path, sources: dict[str, str]) -> None:
    write_sources(tmp_path, **sources)
    assert arguments_known(tmp_path).names == frozenset()


def test_unknown_layout_of_sources_gives_no_options(tmp_path: Path) -> None:
    assert arguments_known(tmp_path) == Arguments()


def recorded(version: str) -> Arguments:
    """Return the options that were recorded of a version."""
    lines = (Path(__file__).parent / "options" / f"{version}.txt").read_text().splitlines()
    named = [line for line in lines if not line.startswith("#")]
    switches = frozenset(line[1:] for line in named if line.startswith("-"))
    return Arguments(frozenset(line.lstrip("-") for line in named), switches)


@pytest.mark.parametrize("version", ["0.11", "0.33"])
def test_every_option_in_use_exists_in_the_oldest_and_the_newest_version(version: str) -> None:
    known = recorded(version)
    command = engines.vllm("model", 2, {}, known)
    used = {word[2:] for word in command.arguments if word.startswith("--")}
    assert used | {"uds"} <= known.names
    assert {"middleware", "scheduling-policy", "allowed-media-domains"} <= used
    assert not command.fetches_media
    assert command.has_priorities


@pytest.mark.parametrize("version", ["0.11", "0.33"])
def test_front_end_and_engine_keys_are_taken_by_both_versions(version: str) -> None:
    keys: dict[Any, Any] = {
        "chat_template": "template.jinja",
        "enable-auto-tool-choice": True,
        "tool-call-parser": "hermes",
        "lora-modules": ["a=b"],
        "max-model-len": 4096,
        "gpu-memory-utilization": 0.8,
        "max-num-seqs": 64,
        "enforce-eager": True,
    }
    options = options_from("file", keys, {}, recorded(version).names)
    assert len(options) == len(keys)


def test_only_the_newest_version_spans_nodes() -> None:
    ranks = {"nnodes", "node-rank", "master-addr", "master-port", "headless"}
    assert ranks <= recorded("0.33").names
    assert "nnodes" not in recorded("0.11").names


def test_key_of_a_newer_version_is_refused_by_an_older_one() -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'attention-backend'"):
        options_from("file", {"attention-backend": "x"}, {}, recorded("0.11").names)
    assert options_from("file", {"attention-backend": "x"}, {}, recorded("0.33").names)


@pytest.mark.vllm
def test_installed_version_has_the_options_in_use() -> None:
    root = server_root()
    assert root is not None
    known = arguments_known(root)
    assert known.names >= {
        *("max-model-len", "max-num-seqs", "dtype", "hf-token", "gpu-memory-utilization"),
        *("uds", "middleware", "host", "chat-template", "served-model-name"),
        *("override-generation-config", "tensor-parallel-size", "enforce-eager"),
    }
    assert "headless" in known.switches


@pytest.mark.dragon
def test_plugins_of_a_package_are_excluded() -> None:
    assert "dragon_engine" in plugins_except("nobody").split(",")
    assert "dragon" not in plugins_except("dragon")


class VLLMClientError(Exception):
    """A class of vLLM 0.28 and later."""


class Busy(Exception):
    http_status = 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("before 0.28"), 400),
        (TypeError(), 400),
        (VLLMClientError(), 400),
        (Busy(), 503),
        (RuntimeError(), 500),
    ],
)
def test_error_class_gives_the_status(error: Exception, status: int) -> None:
    assert error_status(error)[0] == status


@pytest.mark.parametrize(
    ("tasks", "labels", "kinds"),
    [
        (["generate", "render"], 2, ["generate"]),
        (["embed", "token_embed"], 2, ["embed", "score"]),
        (["classify"], 3, ["classify"]),
        (["classify"], 1, ["score"]),
        (["score", "encode"], 1, ["score"]),
        (["generate", "embed"], 2, ["embed", "generate", "score"]),
    ],
)
async def test_kinds_of_ai_tasks_follow_from_the_tasks_of_the_server(
    tasks: list[str], labels: int, kinds: list[str]
) -> None:
    class Engine:
        model_config = SimpleNamespace(hf_config=SimpleNamespace(num_labels=labels))

        async def get_supported_tasks(self) -> list[str]:
            return tasks

    assert await ai_kinds(Engine()) == (kinds, "embed" in tasks)
