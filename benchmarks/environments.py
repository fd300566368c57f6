"""Environments of other packages, beside the one of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["python_with"]


def python_with(folder: Path, requirements: Sequence[str]) -> str:
    """Return an environment's interpreter; create it if it is missing or out of date.

    Raises:
        RuntimeError: A package cannot be installed; the message has pip's last line.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join([sys.version, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        _install(python, requirements)
        stamp.write_text(wanted)
    return str(python)


def _install(python: Path, requirements: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(
            f"{', '.join(requirements)} cannot be installed into {python.parents[1]}: {lines[-1]}"
        )
