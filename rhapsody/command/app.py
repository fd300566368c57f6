"""The command line application: its subcommands, its exit codes, and its error messages."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from rhapsody import __version__
from rhapsody.command.batch import batch
from rhapsody.command.doctor import doctor
from rhapsody.command.journal import journal
from rhapsody.command.report import report
from rhapsody.command.serve import serve
from rhapsody.command.top import top
from rhapsody.errors import RhapsodyError

__all__ = ["app", "main"]

WIDTH = 80
"""Columns of the help if the terminal does not say how wide it is."""

app = typer.Typer(
    name="rhapsody",
    help="Rhapsody: workflows of functions, executables and AI tasks, and model servers.",
    epilog="Exit codes: 0 success or Ctrl-C, 1 a problem, 2 a wrong option or argument.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(batch)
app.command()(doctor)
app.command()(journal)
app.command()(report)
app.command()(serve)
app.command()(top)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rhapsody {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    log_level: Annotated[
        str,
        typer.Option(help="Least level of the log on standard error: debug, info, warning, error."),
    ] = "warning",
) -> None:
    """Options before the name of a subcommand."""
    level = logging.getLevelName(log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter(
            f"'{log_level}' is none of debug, info, warning and error", param_hint="--log-level"
        )
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main() -> NoReturn:
    """Run the command of this process's arguments, and exit."""
    # `rhapsody doctor >&-` has no standard output.
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    os.environ.setdefault("COLUMNS", "" if is_terminal else str(WIDTH))
    try:
        app()
    except RhapsodyError as error:
        _exit_with(str(error))
    except BrokenPipeError:  # `rhapsody doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _exit_with(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    sys.exit(0)


def _exit_with(message: str) -> NoReturn:
    typer.echo(f"rhapsody: error: {message}", err=True)
    sys.exit(1)
