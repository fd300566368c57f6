"""Engines as commands."""

import sys

from rhapsody.inference.engines import embedded_command


def test_the_embedded_model_runs_in_this_python() -> None:
    assert embedded_command("tiny", {}) == [
        sys.executable,
        "-m",
        "rhapsody.inference.embedded",
        "--model",
        "tiny",
    ]


def test_options_become_arguments() -> None:
    command = embedded_command("tiny", {"max-num-seqs": 4, "token-delay-ms": 1.5})
    assert command[-4:] == ["--max-num-seqs", "4", "--token-delay-ms", "1.5"]
