"""The environment of `rhapsody-py`, which has the import name of this package: `.venv-peer`."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.processes import ROOT

__all__ = ["PEER", "VERSION", "peer_python"]

VERSION = "0.6.0"
PEER = f"rhapsody-py {VERSION}"


def peer_python(folder: Path = ROOT / ".venv-peer") -> str:
    """Return the peer's interpreter; its environment is made once, and anew when this changes.

    Raises:
        RuntimeError: It cannot be installed, with pip's last line.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join([sys.version, *_requirements()])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        _install(python)
        stamp.write_text(wanted)
    return str(python)


def _requirements() -> list[str]:
    """Return the peer with the Dragon that it asks for, and Dask as it is here."""
    extras = [name for name in ("dask", "dragon") if _has(name)]
    requirements = [f"rhapsody-py[{','.join(extras)}]=={VERSION}"]
    if "dask" in extras:
        requirements.append(f"distributed=={importlib.metadata.version('distributed')}")
    return requirements


def _has(extra: str) -> bool:
    package = {"dask": "distributed", "dragon": "dragonhpc"}[extra]
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _install(python: Path) -> None:
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*command, *_requirements()], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"{PEER} cannot be installed into {python.parents[1]}: {lines[-1]}")
