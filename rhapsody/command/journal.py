"""`rhapsody journal`: what a journal holds, and why tasks will run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rhapsody.journal.summary import summarize, vacuum, write_csv, write_html

__all__ = ["journal"]


def journal(
    file: Annotated[Path, typer.Argument(help="The file of the journal.", show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page to this file.", metavar="PAGE", show_default=False),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write a line for each task as CSV.")] = False,
    shrink: Annotated[
        bool,
        typer.Option("--vacuum", help="Remove results of older code, and make the file smaller."),
    ] = False,
) -> None:
    """Show what is done, what failed, and why tasks ran again in the runs of a journal.

    The program that uses the journal may be running, except with --vacuum.
    """
    if (html is not None) + csv + shrink > 1:
        raise typer.BadParameter("--html, --csv and --vacuum exclude each other")
    if html is not None:
        typer.echo(write_html(file, html))
    elif csv:
        write_csv(file, sys.stdout)
    elif shrink:
        typer.echo(f"{vacuum(file)} results of older code were removed")
    else:
        typer.echo(summarize(file))
