"""Engines: what serves a model, as a command without its address."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_NUM_SEQS", "embedded_command"]

MAX_NUM_SEQS = 256
"""Prompts that one embedded server works on at a time, where the configuration says nothing."""


def embedded_command(model_name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the command of an embedded model's server.

    Args:
        model_name: The name it serves under.
        options: Options of the server, without their leading dashes.
    """
    command = [sys.executable, "-m", "rhapsody.inference.embedded", "--model", model_name]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command
