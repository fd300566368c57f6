"""Programs that a benchmark starts, in environments of their own, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rhapsody.processes import GROUP

__all__ = ["ROOT", "dragon_command", "program"]

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

# In the environment of all that a program starts, so that a child can be told from a stranger
# after its parent is gone. A program within a program adds to it.
MARK = "RHAPSODY_BENCHMARK"


@contextlib.contextmanager
def program(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; at the end it, all that it started and its temporary files are gone.

    Args:
        command: What to run.
        environment: Variables to add to this process's own.
        options: As `subprocess.Popen` takes them.

    Yields:
        The process, in a group of its own. Dragon hangs in a session of its own.
    """
    with tempfile.TemporaryDirectory(prefix="rhapsody-", ignore_cleanup_errors=True) as folder:
        mark = os.path.join(os.environ.get(MARK, ""), os.path.basename(folder))
        variables = {k: v for k, v in os.environ.items() if not k.startswith("DRAGON_")}
        variables |= {"TMPDIR": folder, MARK: mark, **(environment or {})}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=variables, **GROUP, **options
        )
        try:
            yield process
        finally:
            _end_all(mark)
            process.wait()
            _remove_segments(process.pid)


def dragon_command(python: str = sys.executable) -> str:
    """Return the `dragon` command of an environment, by its interpreter."""
    return str(Path(python).with_name("dragon"))


def _end_all(mark: str) -> None:
    """Kill every process with this mark and its descendants, until there is none."""
    while found := _all_of(mark):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _all_of(mark: str) -> set[psutil.Process]:
    found = {process for process in psutil.process_iter() if _has_mark(process, mark)}
    for process in list(found):
        # A process that changes its title, as vLLM's engine does, loses its environment.
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        theirs: str = process.environ().get(MARK, "")
    except (psutil.Error, OSError):  # it ended, or is another user's
        return False
    return theirs == mark or theirs.startswith(f"{mark}/")


def _remove_segments(launcher: int) -> None:
    """Remove the shared memory of a Dragon runtime that was killed, by its launcher's pid."""
    for segment in Path("/dev/shm").glob(f"DD{str(os.getuid())[-3:]}{str(launcher)[-3:]}*"):
        segment.unlink(missing_ok=True)
