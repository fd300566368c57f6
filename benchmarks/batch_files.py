"""A file of 2,000 requests: `rhapsody batch` compared with vLLM's `run-batch`.

Both run the same file on the same tiny model with random weights. The time begins when the log says
that the engine is ready, and ends with the last write to the file of results, so that the start of
vLLM counts for neither.

A third run is killed by SIGKILL when half of the results are written, and continued by the same
command. Its time is the sum of both parts, and it must leave one result for each line.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure
from benchmarks.processes import program
from benchmarks.tiny_vllm import ENVIRONMENT
from rhapsody.testing.tiny_llama import make_tiny_llama

LINES = 2000
ROUNDS = 2
POLL_SECONDS = 0.01
START_SECONDS = 200
"""Limit of a start of vLLM."""

OPTIONS = {"enforce-eager": True, "max-num-seqs": 256, "max-model-len": 1024}


class Command(NamedTuple):
    """A command that runs a file of requests.

    Args:
        arguments: What to run.
        output: Its file of results.
        ready: The words of its log when the engine is ready.
    """

    arguments: Sequence[str]
    output: Path
    ready: str


def write_requests(path: Path, model: Path) -> None:
    with path.open("w") as file:
        for number in range(LINES):
            text = f"What is {number} and what is it good for?"
            messages = [{"role": "user", "content": text}]
            body = {"model": str(model), "messages": messages, "max_tokens": 16, "temperature": 0}
            line = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")


def commands(folder: Path) -> tuple[Command, Command]:
    """Write the model, the file and the configuration; return our command and vLLM's."""
    model, source, config = folder / "tiny", folder / "in.jsonl", folder / "config.yaml"
    make_tiny_llama(model)
    write_requests(source, model)
    config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in OPTIONS.items()))
    ours, base = folder / "rhapsody.jsonl", folder / "vllm.jsonl"
    names = ("--model", str(model))
    return (
        Command(
            [
                *(sys.executable, "-m", "rhapsody", "--log-level", "info", "batch"),
                *(str(source), "-o", str(ours), *names, "--config-file", str(config)),
            ],
            ours,
            "is running",
        ),
        Command(
            [  # `vllm run-batch` is the same, but needs metadata that the CPU build lacks
                *(sys.executable, "-m", "vllm.entrypoints.openai.run_batch"),
                *("-i", str(source), "-o", str(base), *names, "--enforce-eager"),
                *("--max-num-seqs", "256", "--max-model-len", "1024"),
            ],
            base,
            "Reading batch from",
        ),
    )


def run(command: Command, kill_at_bytes: int | None = None) -> float:
    """Run a command, and return the seconds from a ready engine to the last result.

    Args:
        command: The command.
        kill_at_bytes: Kill it when the file of results has this size; None: never.
    """
    log = command.output.with_suffix(".log")
    variables = {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO"}
    with (
        log.open("wb") as file,
        program(command.arguments, variables, stdout=file, stderr=file) as process,
    ):
        _wait(process, lambda: command.ready in log.read_text(errors="replace"), log)
        ready = time.time()
        if kill_at_bytes is None:
            assert process.wait() == 0, log.read_text()
            return os.stat(command.output).st_mtime - ready  # of the last write
        _wait(process, lambda: command.output.stat().st_size >= kill_at_bytes, log)
        process.kill()
        process.wait()
        return time.time() - ready


def _wait(process: subprocess.Popen[bytes], condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the command ended or hung: {log.read_text(errors='replace')}")
        time.sleep(POLL_SECONDS)


def check(output: Path) -> None:
    """Check that a file has one response for each request."""
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(result["custom_id"] for result in results) == sorted(
        f"q{number}" for number in range(LINES)
    )
    assert all(result["error"] is None for result in results)


async def measure() -> list[Figure]:
    """Return the figures of files without and with a kill."""
    return await asyncio.to_thread(_measure)


def _measure() -> list[Figure]:
    ours: list[float] = []
    base: list[float] = []
    killed: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        rhapsody, vllm = commands(Path(folder))
        for _ in range(ROUNDS):
            base.append(run(vllm))
            check(vllm.output)
            rhapsody.output.unlink(missing_ok=True)
            ours.append(run(rhapsody))
            check(rhapsody.output)
            half = rhapsody.output.stat().st_size // 2
            rhapsody.output.unlink()
            killed.append(run(rhapsody, half) + run(rhapsody))
            check(rhapsody.output)
    what = f"a file of {LINES:,} requests"
    return [
        Figure(what=what, over="vLLM's run-batch", ours=ours, base=base, at_most=1.0),
        Figure(
            what=f"{what}, killed at its half and continued",
            over="the same without a kill",
            ours=killed,
            base=ours,
        ),
    ]
