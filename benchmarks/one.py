"""Run one benchmark and write its measurements to a file: `python benchmarks/one.py MODULE FILE`.

It also runs under `dragon`.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

# Replaces this folder, in which `benchmarks/dragon.py` would hide the package `dragon`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.results import Measured  # noqa: E402


def main() -> None:
    module, path = sys.argv[1:]
    found = asyncio.run(importlib.import_module(module).measure())
    Path(path).write_text(Measured.of(found).model_dump_json())


if __name__ == "__main__":
    main()
