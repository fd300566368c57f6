"""The command line: its help, exit codes and error messages, with the real program."""

import shlex
import subprocess
import sys

import pytest


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
