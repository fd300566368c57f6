"""The command line application: its subcommands, its exit codes, and its error messages."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from rhapsody import __version__
from rhapsody.errors import RhapsodyError

__all__ = ["SUBCOMMANDS", "app", "main"]

WIDTH = 80
"""Columns of the help if the terminal does not say how wide it is."""

SUBCOMMANDS = {
    "batch": "Run the requests of a file in OpenAI's batch format, and append their results.",
    "doctor": "Show what this machine has, what Rhapsody would use, and what is missing.",
    "journal": "Show what is done, what failed, and why tasks ran again in the runs of a journal.",
    "report": "Write the page of a run from its telemetry file, or from its live page.",
    "serve": "Serve models over HTTP, with the routes of OpenAI, until Ctrl-C.",
    "top": "Show prompts, tokens and replicas of a running model server, until Ctrl-C.",
}
"""The subcommands, each a function in the module of its name, and the first lines of their help."""


class Subcommands(TyperGroup):
    """Imports the module of a subcommand when it is used: the help of all needs none of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._is_listing = False
        for name, text in SUBCOMMANDS.items():
            self.add_command(TyperCommand(name, help=text))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a subcommand; for a list only its name and the first line of its help."""
        if self._is_listing or cmd_name not in SUBCOMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"rhapsody.command.{cmd_name}")
        alone = typer.Typer(add_completion=False, context_settings=HELP)
        alone.command(cmd_name)(getattr(module, cmd_name))
        return get_command(alone)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the command."""
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what may follow, for the completion of a shell."""
        self._is_listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._is_listing = False


HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="rhapsody",
    cls=Subcommands,
    help="Rhapsody: workflows of functions, executables and AI tasks, and model servers.",
    epilog="Exit codes: 0 success or Ctrl-C, 1 a problem, 2 a wrong option or argument.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


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
