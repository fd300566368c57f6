"""Which benchmarks there are, and how each is run: in a process of its own, with a time limit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.machine import load, missing
from benchmarks.processes import ROOT, dragon_command, program
from benchmarks.results import Measured, Result

__all__ = ["BENCHMARKS", "Benchmark", "run"]

LINES_OF_LOG = 30


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        about: What it measures.
        limit: Longest time for it, in seconds.
        needs: Runtime without which it cannot run.
        under_dragon: Run it under the `dragon` command.
    """

    about: str
    limit: float
    needs: str | None = None
    under_dragon: bool = False


BENCHMARKS = {
    "session": Benchmark("a Session over the bare backend", 300),
    "engine": Benchmark("the event-driven engine over AsyncFlow's own", 600),
    "dask": Benchmark("the Dask backend over Dask alone", 600, "Dask"),
    "dragon": Benchmark("the Dragon backend over Dragon alone", 600, "Dragon", under_dragon=True),
    "allocation": Benchmark("the Dragon backend's pool on 1,000 nodes that are simulated", 300),
    "batcher": Benchmark("the inference backend over one post to a model server", 300),
    "inference": Benchmark("vLLM as served here over AsyncLLM and a fixed window", 900, "vLLM"),
    "peer": Benchmark("the same programs here and on rhapsody-py", 900),
    "tuning": Benchmark("batching and workers, as curves", 900),
}


def run(name: str, benchmark: Benchmark) -> Result:
    """Run a benchmark to its end, and end all that it has started.

    Args:
        name: Of the module in this package.
        benchmark: What it needs.

    Returns:
        What it measured, or the problem: this does not raise.
    """
    result = Result(began=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}", load=load())
    result.problem = missing(benchmark.needs)
    if result.problem is not None:
        return result
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        result.problem = _run(name, benchmark, found, log)
        if result.problem is None:
            result.measured = Measured.model_validate_json(found.read_text())
        else:
            tail = log.read_text(errors="replace").splitlines()[-LINES_OF_LOG:]
            print(*tail, sep="\n", file=sys.stderr)
    result.seconds = round(time.perf_counter() - began, 1)
    return result


def _run(name: str, benchmark: Benchmark, found: Path, log: Path) -> str | None:
    """Run it in a process; returns what went wrong."""
    interpreter = dragon_command() if benchmark.under_dragon else sys.executable
    command = [interpreter, str(ROOT / "benchmarks" / "one.py"), f"benchmarks.{name}", str(found)]
    with (
        log.open("wb") as output,
        program(command, {"PYTHONPATH": str(ROOT)}, stdout=output, stderr=output) as process,
    ):
        try:
            code = process.wait(benchmark.limit)
        except subprocess.TimeoutExpired:
            if not found.exists():
                return f"stopped: it had not ended after {benchmark.limit:g} s"
            return None
    # Under Dragon the launcher's code says little: what counts is the file.
    if found.exists():
        return None
    return f"ended with code {code}: {_last_error(log)}"


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line]
    return next(reversed(errors or lines or ["it wrote nothing"]))
