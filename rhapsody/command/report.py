"""`rhapsody report`: the page of a run, from the file that its telemetry wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rhapsody.report.page import write_page
from rhapsody.report.recorded import read_checkpoint

__all__ = ["report"]


def report(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint file of telemetry, or a directory: the newest one in it.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page. Default: FILE with the ending .html.", metavar="PAGE"
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The heading. Default: the uid of the run.")
    ] = None,
) -> None:
    """Write the page of a run from the file that its telemetry wrote.

    The program of the run may still be running. The file is that of 'checkpoint_path='.
    """
    run = read_checkpoint(file)
    page = output or file.with_suffix(".html")
    typer.echo(write_page(page, run.page(title)))
