"""`rhapsody batch`: the requests of a file, through the batcher, into another file."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from rhapsody.command.batch_lines import LineError, error_line, read_request, response_line
from rhapsody.errors import (
    ConfigurationError,
    PartialFailureError,
    PromptError,
    RhapsodyError,
    UnsupportedTaskError,
)

__all__ = ["batch"]

AT_ONCE = 2048
"""Lines in progress, so that memory does not grow with the file."""
PRIORITY = -10
"""Somebody may use the same servers interactively."""


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="File of requests, one JSON object in a line.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of results; it is continued if it exists.")
    ],
    model: Annotated[
        str,
        typer.Option(help="'embedded', the name or path of a model for vLLM, or a server's URL."),
    ],
    config_file: Annotated[
        Path | None, typer.Option(help="YAML file with options of the engine.")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(help="GPUs to use; default: all of this machine.")
    ] = None,
) -> None:
    """Run the requests of a file in OpenAI's batch format; results are appended as they come.

    A wrong request is an error on its line. If the command was interrupted, or killed, the same
    command continues: requests with a result are not sent again.

    Example: rhapsody batch requests.jsonl -o results.jsonl --model http://localhost:8000/v1
    """
    from rhapsody.backends.choice import inference_backend

    if source.resolve() == output.resolve():
        raise ConfigurationError("the results must go to another file than the requests come from")
    options: dict[str, Any] = {}
    if config_file is not None:
        options["config_file"] = config_file
    if num_gpus is not None:
        options["num_gpus"] = num_gpus
    with source.open("rb") as lines:
        counts = asyncio.run(_run(inference_backend(model, **options), lines, output))
    parts = [f"{counts[name]} {name}" for name in ("done", "errors", "before")]
    print(f"{sum(counts.values())} lines: {', '.join(parts)}", file=sys.stderr)  # noqa: T201 - a command speaks to its user


async def _run(backend: Any, lines: Iterable[bytes], output: Path) -> Counter[str]:
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, running.cancel)
    finished = await asyncio.to_thread(_finished, output)
    with output.open("a", encoding="utf-8") as results:
        run = _Batch(backend, results, finished)
        try:
            async with backend:
                await run.run(lines)
        except asyncio.CancelledError:
            number = sum(run.counts.values())
            raise RhapsodyError(
                f"interrupted after {number} lines; the same command continues"
            ) from None
    return run.counts


def _finished(output: Path) -> set[str]:
    """Return the ids of the results in a file, and cut off an incomplete last line."""
    finished: set[str] = set()
    if not output.exists():
        return finished
    end = 0
    with output.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                finished.add(json.loads(line)["custom_id"])
            except (ValueError, KeyError, TypeError):
                raise ConfigurationError(
                    f"line {number} of {output} is no result of a batch; name another file"
                ) from None
    with output.open("rb+") as file:
        file.truncate(end)
    return finished


class _Batch:
    """The requests in progress, and the file of results."""

    def __init__(self, backend: Any, results: TextIO, finished: set[str]) -> None:
        self._backend = backend
        self._results = results
        self._finished = finished
        self._seen: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    async def run(self, lines: Iterable[bytes]) -> None:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._running.add(asyncio.create_task(self._handle(number, line)))
                if len(self._running) >= AT_ONCE:
                    await self._wait(asyncio.FIRST_COMPLETED)
                elif number % 64 == 0:
                    await asyncio.sleep(0)
            while self._running:
                await self._wait(asyncio.FIRST_COMPLETED)
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    async def _wait(self, until: str) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=until)
        for task in done:
            task.result()  # no server is left, or the file cannot be written

    async def _handle(self, number: int, text: bytes) -> None:
        custom_id = f"line-{number}"
        try:
            try:
                line = json.loads(text)
            except ValueError as error:
                raise LineError(f"line {number} is not JSON: {error}") from None
            if not isinstance(line, dict):
                raise LineError(f"line {number} must be an object, got {line!r:.80}")
            given = line.get("custom_id", custom_id)
            if not isinstance(given, str) or given in self._seen:
                fault = "is used by an earlier line" if given in self._seen else "must be a string"
                raise LineError(f"the 'custom_id' {given!r:.80} of line {number} {fault}")
            custom_id = given
            self._seen.add(custom_id)
            if custom_id in self._finished:
                self.counts["before"] += 1
                return
            model = self._backend.model_name
            request = read_request(custom_id, line, model)
            task = {"uid": f"line-{number}", "priority": PRIORITY, **request.task}
            fields = await self._backend.run_one(task)
            written = response_line(request, fields, model)
            self.counts["done"] += 1
        except (LineError, PromptError, PartialFailureError, UnsupportedTaskError) as error:
            if custom_id in self._finished:
                self.counts["before"] += 1
                return
            written = error_line(custom_id, error)
            self.counts["errors"] += 1
        self._results.write(written)
        self._results.flush()
