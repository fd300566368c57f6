"""Starts programs for benchmarks and cleans up after them."""

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

from rhapsody.inference.protocol.shared_memory import PREFIXES, remove_segments, segments_of
from rhapsody.processes import GROUP

__all__ = ["ROOT", "dragon_command", "program"]

ROOT = Path(__file__).resolve().parents[1]
"""Root of the checkout."""

# In the environment of every process that a program starts. It identifies a child after its parent
# has ended. A program that is started by a program extends the value.
MARK = "RHAPSODY_BENCHMARK"


DRAGON_PREFIX = "DD"
"""How the names of Dragon's shared memory begin. A runtime's own files continue with the end of its
launcher's pid, those of its distributed dictionaries with an identifier."""


@contextlib.contextmanager
def program(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; at the end, kill it and its children and remove its temporary files.

    Args:
        command: What to run.
        environment: Variables to add to those of this process.
        **options: Passed to `subprocess.Popen`.

    Yields:
        The process, in its own process group. (Dragon hangs in its own session.)
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
            _kill_all(mark)
            process.wait()
            _remove_segments(process.pid)


def dragon_command(python: str = sys.executable) -> str:
    """Return the path of the `dragon` command beside an interpreter."""
    return str(Path(python).with_name("dragon"))


def _kill_all(mark: str) -> None:
    """Kill all processes with a mark and their descendants, until none is left."""
    segments: set[str] = set()
    while found := _all_of(mark):
        for process in found:
            with contextlib.suppress(psutil.Error, OSError):
                segments |= segments_of(os.getpgid(process.pid), (*PREFIXES, DRAGON_PREFIX))
                process.kill()
        psutil.wait_procs(found, timeout=1)
    # Model servers and Dragon remove theirs later, if they are not killed.
    remove_segments(segments)


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
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False
    return theirs == mark or theirs.startswith(f"{mark}/")


def _remove_segments(launcher: int) -> None:
    """Remove the shared memory of a killed Dragon runtime, given the pid of its launcher."""
    for segment in Path("/dev/shm").glob(
        f"{DRAGON_PREFIX}{str(os.getuid())[-3:]}{str(launcher)[-3:]}*"
    ):
        segment.unlink(missing_ok=True)
