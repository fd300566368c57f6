"""The list of benchmarks. Each runs in its own process, with a time limit."""

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
        limit: Time limit in seconds.
        needs: Runtime that it requires, if any.
        under_dragon: Whether it runs under the `dragon` command.
    """

    about: str
    limit: float
    needs: str | None = None
    under_dragon: bool = False


BENCHMARKS = {
    "session": Benchmark("a Session compared with the backend alone", 300),
    "engine": Benchmark("the event-driven engine compared with AsyncFlow's", 600),
    "waiting": Benchmark("memory of many waiting tasks, and how long they hold the loop", 600),
    "journal": Benchmark("tasks with a journal compared with the same without", 300),
    "dask": Benchmark("the Dask backend compared with Dask alone", 600, "Dask"),
    "dragon": Benchmark(
        "the Dragon backend compared with Dragon alone", 600, "Dragon", under_dragon=True
    ),
    "allocation": Benchmark("the scheduler of workers on 1,000 simulated nodes", 300),
    "batcher": Benchmark("the inference backend compared with one request to a model server", 300),
    "serving": Benchmark("priority, spares and prefix routing compared with a server without", 300),
    "inference": Benchmark(
        "vLLM as served here compared with AsyncLLM and a fixed window", 900, "vLLM"
    ),
    "kinds": Benchmark(
        "embeddings and scores on vLLM, and an endpoint backend compared with a loop of aiohttp",
        900,
        "vLLM",
    ),
    "batch_files": Benchmark(
        "a file of 2,000 requests compared with vLLM's run-batch, and after a kill", 1200, "vLLM"
    ),
    "images": Benchmark("chats with images compared with vLLM directly", 600, "vLLM"),
    "peer": Benchmark("the same programs on Rhapsody and on rhapsody-py", 900),
    "systems": Benchmark("the same work on Rhapsody, Ray, Dask, Parsl and a process pool", 900),
    "tuning": Benchmark("curves of batching parameters and numbers of workers", 900),
}


def run(name: str, benchmark: Benchmark) -> Result:
    """Run a benchmark, and end every process that it started.

    Args:
        name: Name of its module in this package.
        benchmark: Its description.

    Returns:
        What it measured, or why it failed. Failures are not raised.
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
    """Run a benchmark in a process; return a description of the failure, if any."""
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
                return f"stopped at the time limit of {benchmark.limit:g} s"
            return None
    # The exit code of Dragon's launcher is unreliable: the benchmark succeeded if the file exists.
    if found.exists():
        return None
    return f"exited with code {code}: {_last_error(log)}"


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line]
    return next(reversed(errors or lines or ["no output"]))
