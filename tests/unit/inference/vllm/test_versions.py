"""What is read from vLLM's sources without importing it."""

from pathlib import Path

import pytest

from rhapsody.inference.vllm.versions import (
    Arguments,
    arguments_known,
    error_status,
    plugins_but,
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


def test_options_are_read_from_the_sources(tmp_path: Path) -> None:
    for name, text in (
        ("engine/arg_utils.py", ARG_UTILS),
        ("entrypoints/openai/cli_args.py", CLI_ARGS),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    known = arguments_known(tmp_path)
    assert known.names == {"max-model-len", "headless", "host", "chat-template"}
    assert known.switches == {"headless"}


def test_sources_that_lie_elsewhere_tell_nothing(tmp_path: Path) -> None:
    assert arguments_known(tmp_path) == Arguments()


@pytest.mark.vllm
def test_the_installed_version_tells_its_options() -> None:
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
def test_plugins_of_a_package_are_left_out() -> None:
    assert "dragon_engine" in plugins_but("nobody").split(",")
    assert "dragon" not in plugins_but("dragon")


class VLLMClientError(Exception):
    """As vLLM 0.28 and later have it."""


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
def test_an_error_has_the_status_that_fits(error: Exception, status: int) -> None:
    assert error_status(error)[0] == status
