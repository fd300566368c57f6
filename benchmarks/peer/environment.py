"""The environment `.venv-peer` of `rhapsody-py`, which has the same import name as this package."""

from __future__ import annotations

import importlib.metadata

from benchmarks.environments import python_with
from benchmarks.processes import ROOT

__all__ = ["PEER", "VERSION", "peer_python"]

VERSION = "0.6.0"
PEER = f"rhapsody-py {VERSION}"


def peer_python() -> str:
    """Return the peer's interpreter, and create its environment if it is missing or out of date.

    Raises:
        RuntimeError: The peer cannot be installed; the message has pip's last line.
    """
    return python_with(ROOT / ".venv-peer", _requirements())


def _requirements() -> list[str]:
    """Return the peer, with the Dragon that it requires and the installed version of Dask."""
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
