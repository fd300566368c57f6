"""`rhapsody batch`: the requests of a file, through the batcher, into another file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rhapsody.command.progress import Progress
from rhapsody.errors import ConfigurationError, RhapsodyError
from rhapsody.inference.bulk.results import Results
from rhapsody.inference.bulk.run import BulkRun, Finished, read_lines

__all__ = ["batch", "summary"]

MESSAGE_CHARACTERS = 200
"""Of the message of an error that is shown; the file of results has all of it."""


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
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="Send requests again whose result is an error."),
    ] = False,
) -> None:
    """Run the requests of a file in OpenAI's batch format, and append their results.

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
    source.open("rb").close()  # an OSError before a server starts
    backend = inference_backend(model, **options)
    for line in asyncio.run(_run(backend, source, output, retry_errors)):
        print(line, file=sys.stderr)  # noqa: T201 - a command speaks to its user


async def _run(backend: Any, source: Path, output: Path, retry_errors: bool) -> list[str]:
    """Run the requests, and return what the user is told at the end."""
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, running.cancel)
    finished = Finished(retry_errors)
    opened = await asyncio.to_thread(Results, output, finished.take)
    first_error = ""
    with contextlib.closing(opened) as results:

        def write(line: str, is_error: bool) -> None:
            nonlocal first_error
            results.write(line)
            if is_error and not first_error:
                first_error = _error_of(line)

        run = BulkRun(_Backend(backend), write, finished)
        progress = Progress(source, backend.model_name, run.counts)
        showing = asyncio.create_task(progress.show())
        try:
            async with backend:
                progress.begin()
                await run.run(read_lines(source))
        except asyncio.CancelledError:
            number = sum(run.counts.values())
            raise RhapsodyError(
                f"interrupted after {number} lines; the same command continues"
            ) from None
        finally:
            showing.cancel()
            await asyncio.wait([showing])
    return summary(run.counts, output, first_error, finished.errors)


def summary(counts: Counter[str], output: Path, first_error: str, earlier: int) -> list[str]:
    """Return what the user is told at the end.

    Args:
        counts: The counts of the run.
        output: The file of results.
        first_error: The first error of this run.
        earlier: Errors of earlier runs that are in the file.
    """
    text = f"{sum(counts.values()):,} lines: {counts['done']:,} done, {counts['errors']:,} errors"
    if counts["before"]:
        text += f", {counts['before']:,} with a result of an earlier run"
    lines = [text]
    if counts["errors"]:
        lines.append(f"The first error is of {first_error}")
    if earlier:
        lines.append(f"Errors of earlier runs: {earlier:,}")
    if counts["errors"] or earlier:
        lines.append(
            f"All errors are in {output}; with --retry-errors the same command sends their "
            "requests again"
        )
    return lines


def _error_of(line: str) -> str:
    result = json.loads(line)
    message = " ".join(result["error"]["message"].split())
    shown = message if len(message) <= MESSAGE_CHARACTERS else f"{message[:MESSAGE_CHARACTERS]}..."
    return f"{result['custom_id']}: {shown}"


class _Backend:
    """A backend as the target of a run."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def model_for(self, name: Any) -> str:
        """Return the model of the backend; a line that names another one is refused."""
        model: str = self._backend.model_name
        return model

    async def run(self, model: str, task: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result fields of a task."""
        fields: Mapping[str, Any] = await self._backend.run_one(task)
        return fields
