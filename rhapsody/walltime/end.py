"""The walltime of a batch job: when it ends, and how long that is from now."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from rhapsody.errors import ConfigurationError
from rhapsody.validation import is_number, must_be

__all__ = [
    "END_VARIABLE",
    "EXIT_RESUBMIT",
    "WalltimeEnd",
    "check_walltime",
    "find_end",
    "remaining_walltime",
]

logger = logging.getLogger(__name__)

EXIT_RESUBMIT = 75
"""The exit code of a program that wants to be started again: EX_TEMPFAIL of sysexits.h."""

END_VARIABLE = "RHAPSODY_WALLTIME_END"
"""The environment variable that tells tasks the end of the walltime, in seconds since the epoch."""

COMMAND_SECONDS = 10.0
"""Longest time that a command of the batch system may take."""


class WalltimeEnd(NamedTuple):
    """The end of an allocation.

    Attributes:
        at: Seconds since the epoch.
        source: Where it was read, in words.
    """

    at: float
    source: str


def check_walltime(walltime: Any, margin: Any) -> None:
    """Check the options `walltime` and `walltime_margin` of a session or an engine.

    A walltime below 0 has passed already.

    Raises:
        ConfigurationError: One of them is not a number of seconds, or the margin is negative.
    """
    if walltime is not None and not is_number(walltime):
        raise ConfigurationError(must_be("walltime", "a number of seconds", walltime))
    if not is_number(margin) or margin < 0:
        raise ConfigurationError(
            must_be("walltime_margin", "a number of seconds that is not negative", margin)
        )


def find_end(walltime: float | None = None) -> WalltimeEnd | None:
    """Find out when the allocation of this program ends. May run a command of the batch system.

    Args:
        walltime: Seconds from now, if the batch system does not say.

    Returns:
        None if nothing says when.
    """
    end = _slurm_end(os.environ)
    if end is None:
        for variable, command, read in _COMMANDS:
            job = os.environ.get(variable)
            if job and shutil.which(command[0]):
                end = _end_by_command([*command, job], read)
            if end is not None:
                break
    if end is None and walltime is not None:
        end = WalltimeEnd(time.time() + walltime, "the option walltime")
    return end


def remaining_walltime() -> float | None:
    """Return the seconds until the allocation ends; None if that is not known.

    It can be called in the program, and in functions that run as tasks. Executables read the
    environment variable RHAPSODY_WALLTIME_END instead, in seconds since the epoch.
    """
    for variable in (END_VARIABLE, "SLURM_JOB_END_TIME"):
        try:
            return max(0.0, float(os.environ[variable]) - time.time())
        except (KeyError, ValueError):
            continue
    return None


def _slurm_end(environment: Mapping[str, str]) -> WalltimeEnd | None:
    try:
        return WalltimeEnd(float(environment["SLURM_JOB_END_TIME"]), "SLURM_JOB_END_TIME")
    except (KeyError, ValueError):
        return None


def _end_by_command(command: list[str], read: Callable[[str], float]) -> WalltimeEnd | None:
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True
        )
        return WalltimeEnd(read(run.stdout), command[0])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, StopIteration) as error:
        logger.info("'%s' did not say when the job ends: %s", command[0], error)
        return None


def _read_squeue(text: str) -> float:
    return datetime.fromisoformat(text.strip()).timestamp()


def _read_qstat(text: str) -> float:
    """Read the JSON of PBS: the start of the job and its walltime as hours, minutes, seconds."""
    job = next(iter(json.loads(text)["Jobs"].values()))
    hours, minutes, seconds = map(int, job["Resource_List"]["walltime"].split(":"))
    began = datetime.strptime(job["stime"], "%a %b %d %H:%M:%S %Y").timestamp()
    return began + 3600 * hours + 60 * minutes + seconds


def _read_bjobs(text: str) -> float:
    """Read the seconds that LSF leaves the job, such as "600 second(s)" or "0:10"."""
    words = text.split()
    if ":" in words[0]:
        hours, minutes = map(int, words[0].split(":")[:2])
        return time.time() + 3600 * hours + 60 * minutes
    return time.time() + float(words[0])


_COMMANDS: tuple[tuple[str, list[str], Callable[[str], float]], ...] = (
    ("SLURM_JOB_ID", ["squeue", "--noheader", "--format=%e", "--jobs"], _read_squeue),
    ("PBS_JOBID", ["qstat", "-f", "-F", "json"], _read_qstat),
    ("LSB_JOBID", ["bjobs", "-noheader", "-o", "time_left"], _read_bjobs),
)
"""For each batch system the variable with the job's id, the command, and how to read it."""
