"""The command line: its help, exit codes and error messages, with the real program."""

import importlib
import shlex
import subprocess
import sys

import pytest

from rhapsody.command.app import SUBCOMMANDS


def rhapsody(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rhapsody", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": str(columns), "HOME": "/nonexistent"},
        check=False,
    )


@pytest.mark.parametrize("command", [[], ["serve"], ["doctor"], ["journal"], ["top"]])
def test_help_fits_80_columns(command: list[str]) -> None:
    done = rhapsody(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("Usage:" in line for line in lines)


def test_version_is_printed() -> None:
    assert rhapsody("--version").stdout.startswith("rhapsody 0.")


def test_closed_standard_output_is_no_error() -> None:
    command = f"exec {shlex.quote(sys.executable)} -m rhapsody --version >&-"
    done = subprocess.run(
        command, shell=True, stderr=subprocess.PIPE, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_command_and_option_exit_with_2_and_a_hint() -> None:
    done = rhapsody("serv")
    assert done.returncode == 2
    assert "Did you mean 'serve'?" in done.stderr
    assert rhapsody("doctor", "--nonsense").returncode == 2
    assert rhapsody("--log-level", "loud", "doctor").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "m", "--engine", "vlm"], "'engine' must be 'vllm' or 'embedded', got 'vlm'"),
        (["serve", "m", "--replicas", "2", "--num-gpus", "1"], "exclude each other"),
        (["journal", "missing"], "Journal 'missing' does not exist"),
        (["top", "ftp://host"], "URL must be the address of a server"),
        (["top", "http://127.0.0.1:1"], "no server responds at http://127.0.0.1:1/metrics"),
    ],
)
def test_error_is_one_line_with_exit_code_1(arguments: list[str], message: str) -> None:
    done = rhapsody(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("rhapsody: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_list_of_subcommands_has_the_first_lines_of_their_help(name: str) -> None:
    function = getattr(importlib.import_module(f"rhapsody.command.{name}"), name)
    assert function.__doc__.splitlines()[0] == SUBCOMMANDS[name]


def test_help_imports_no_subcommand() -> None:
    code = (
        "import sys, rhapsody.command.app as a\n"
        "try: a.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith('rhapsody.command.')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stderr.strip() == "['rhapsody.command.app']"


@pytest.mark.parametrize(
    ("words", "number", "expected"),
    [("rhapsody re", "1", "report"), ("rhapsody serve --en", "2", "--engine")],
)
def test_shell_completes_subcommands_and_options(words: str, number: str, expected: str) -> None:
    program = "import sys; sys.argv = ['rhapsody']; import rhapsody.command.app as a; a.main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        env={
            "PATH": "/usr/bin:/bin",
            "_RHAPSODY_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": number,
        },
        check=False,
    )
    assert expected in done.stdout.split()
