"""`rhapsody report`: the page of a run, from its telemetry file or from its live page."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from rhapsody.errors import RhapsodyError
from rhapsody.report.page import write_file, write_page
from rhapsody.report.recorded import read_checkpoint

__all__ = ["report"]

LONGEST_WAIT = 60.0
"""Seconds that the program may take to send its page."""
MARK = '<script id="data"'
"""What every page of a run contains."""


def report(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint file of telemetry, a directory (the newest file in it), or the "
            "address of a live page.",
            metavar="FILE_OR_URL",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page. Default: FILE with the ending .html, or report.html for an address.",
            metavar="PAGE",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The heading. Default: the uid of the run.")
    ] = None,
) -> None:
    """Write the page of a run from its telemetry file, or from its live page.

    The program of the run may still be running. The file is that of 'checkpoint_path='; the address
    is that of 'session.serve_page()'.
    """
    if source.startswith(("http://", "https://")):
        if title is not None:
            raise typer.BadParameter("a live page has its own title", param_hint="--title")
        typer.echo(write_file(output or Path("report.html"), _fetch(source)))
        return
    file = Path(source)
    run = read_checkpoint(file)
    typer.echo(write_page(output or file.with_suffix(".html"), run.page(title)))


def _fetch(url: str) -> str:
    address = f"{url.rstrip('/')}/report"
    try:
        with urllib.request.urlopen(address, timeout=LONGEST_WAIT) as response:
            page: str = response.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 403:
            raise RhapsodyError(
                f"{url} is not the address of a live page: its token is missing or wrong; pass the "
                "whole address that the program printed"
            ) from None
        page = ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise RhapsodyError(f"no program responds at {url}: {reason}") from None
    if MARK not in page:
        raise RhapsodyError(
            f"{url} is not the address of a live page; pass what session.serve_page() returned, or "
            "what RHAPSODY_PAGE=1 printed"
        )
    return page
