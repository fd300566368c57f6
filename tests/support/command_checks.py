"""Static checks of shell commands: they parse, and the names in them exist."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

from tests.support.pages import ROOT

SBATCH = {
    *("account", "exclusive", "gpus-per-node", "job-name", "nodes"),
    *("ntasks-per-node", "output", "partition", "signal", "time"),
}
"""Slurm directives that the pages use."""

SHELL = {
    *("&", "cd", "done", "exit", "export", "fi", "if", "kill", "module", "source", "trap", "umask"),
    *("wait", "while"),
}
OTHER_PROGRAMS = {"apptainer", "curl", "hf", "hostname", "openssl", "sbatch", "ssh", "tail"}
"""External programs that the pages use, whose arguments are not checked."""


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def extras() -> set[str]:
    """Return the extras of the project."""
    project = (ROOT / "pyproject.toml").read_text()
    optional = project.partition("\n[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", optional, re.M))


def check_script(code: str, known_files: set[str]) -> None:
    """Fail if a script does not parse, or if a name in it does not exist.

    Args:
        code: The script, for bash.
        known_files: Names of programs that the page shows.
    """
    subprocess.run(["bash", "-n"], input=code, text=True, check=True, timeout=10)
    for directive in re.findall(r"^#SBATCH --([\w-]+)", code, re.M):
        assert directive in SBATCH, f"unknown Slurm directive: {directive}"
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            check_command([word for word in words if word != "&"], known_files)


def check_command(words: list[str], known_files: set[str]) -> None:
    """Fail if a name in a command does not exist."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "srun":
        while rest and rest[0].startswith("--"):
            assert rest[0].removeprefix("--").partition("=")[0] in SBATCH, rest[0]
            rest = rest[1:]
        check_command(rest, known_files)
    elif program in CHECKS:
        CHECKS[program](rest, known_files)
    else:
        assert program in SHELL | OTHER_PROGRAMS, f"unknown program: {program}"


def _check_make(words: list[str], known_files: set[str]) -> None:
    assert {word for word in words if "=" not in word} <= targets(), words


def _check_pip(words: list[str], known_files: set[str]) -> None:
    for word in words:
        if match := re.fullmatch(r"\.\[([\w,-]+)\]", word):
            assert set(match[1].split(",")) <= extras(), f"there is no extra {word}"


def _check_python(words: list[str], known_files: set[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1].partition(".")[0]), words[1]
    else:
        _check_program(words[0], known_files)


def _check_program(name: str, known_files: set[str]) -> None:
    assert name in known_files or (ROOT / name).is_file(), f"there is no {name}"


def _check_dragon(words: list[str], known_files: set[str]) -> None:
    if importlib.util.find_spec("dragon") is None:
        return
    from dragon.launcher.launchargs import get_parser

    parser_output = io.StringIO()
    try:
        with contextlib.redirect_stderr(parser_output):
            arguments = get_parser().parse_args(words)
    except SystemExit:
        raise AssertionError(f"dragon: {parser_output.getvalue()}") from None
    if arguments.prog:
        _check_program(arguments.prog, known_files)


def _check_ifaddrs(words: list[str], known_files: set[str]) -> None:
    assert set(words) <= {"--ip", "--no-loopback", "--up", "--running"}, words


def _check_dask(words: list[str], known_files: set[str]) -> None:
    if importlib.util.find_spec("distributed") is None:
        return
    from distributed.cli import dask_scheduler, dask_worker

    command = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[words[0]]
    known = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("--")} <= known, words


def _check_rhapsody(words: list[str], known_files: set[str]) -> None:
    from typer.main import get_command

    from rhapsody.command.app import app

    group: Any = get_command(app)
    command = group.get_command(None, words[0])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known | {"--help"}, words


CHECKS: dict[str, Callable[[list[str], set[str]], None]] = {
    "dask": _check_dask,
    "dragon": _check_dragon,
    "dragon-network-ifaddrs": _check_ifaddrs,
    "make": _check_make,
    "pip": _check_pip,
    "pytest": lambda words, known_files: None,
    "python": _check_python,
    "rhapsody": _check_rhapsody,
}
