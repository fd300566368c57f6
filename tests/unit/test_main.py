"""The command as a module: `python -m rhapsody`."""

import subprocess
import sys

from rhapsody import __version__


def test_module_is_the_command() -> None:
    command = [sys.executable, "-m", "rhapsody", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == f"rhapsody {__version__}\n"
