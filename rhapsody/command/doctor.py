"""`rhapsody doctor`: what this machine has, what would be used, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated

import psutil
import typer

from rhapsody.allocation import allocation, is_under_dragon
from rhapsody.gpus import local_gpus

__all__ = ["Fact", "doctor", "facts"]

GIB = 1 << 30
FEWEST_DESCRIPTORS = 1024
"""An executable takes about six descriptors while it runs, an HTTP connection one."""
LEAST_SHARED_MEMORY = GIB
"""Dragon and vLLM keep their messages in /dev/shm."""
LONGEST_TMPDIR = 60
"""Paths of Unix sockets are limited to 107 bytes; names in the directory take up to 47."""

PACKAGES = {
    "radical.asyncflow": "",
    "distributed": "dask",
    "dragonhpc": "dragon",
    "vllm": "vllm-dragon",
    "opentelemetry-sdk": "telemetry",
}
"""Packages that Rhapsody uses, with the extra that installs each."""

SCHEDULERS = {"SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF"}
"""Variables that batch systems set in their jobs."""


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        section: The heading that it belongs to.
        name: What it is about.
        value: What was found.
        advice: What to do about a problem; None: there is none.
    """

    section: str
    name: str
    value: str
    advice: str | None = None


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for programs.")
    ] = False,
) -> None:
    """Show what this machine has, what Rhapsody would use, and what is missing.

    Starts nothing and changes nothing. Paste the output into a bug report; it names this machine,
    but no keys. The exit code is 1 if a line is marked with '!'.
    """
    found = list(facts())
    if as_json:
        typer.echo(json.dumps([vars(fact) for fact in found], indent=2))
    else:
        typer.echo(_as_text(found))
    if any(fact.advice for fact in found):
        raise typer.Exit(1)


def facts() -> Iterator[Fact]:
    """Examine this machine, one fact after another."""
    for section, examine in (
        ("Software", _software),
        ("Machine", _machine),
        ("Limits", _limits),
        ("Allocation", _allocation),
        ("Would be used", _choices),
    ):
        for name, value, advice in examine():
            yield Fact(section, name, value, advice)


Found = Iterator[tuple[str, str, str | None]]


def _software() -> Found:
    yield "Python", f"{platform.python_version()} at {sys.executable}", None
    yield "rhapsody", _version("rhapsody") or "a source tree that is not installed", None
    if _version("rhapsody-py"):
        yield (
            "rhapsody-py",
            _version("rhapsody-py") or "",
            "it has the same import name; uninstall it, and install rhapsody again",
        )
    for package, extra in PACKAGES.items():
        yield package, _version(package) or f"not installed (extra: {extra})", None


def _machine() -> Found:
    yield "system", f"{platform.system()} {platform.release()} on {platform.machine()}", None
    yield "host", platform.node(), None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "CPUs", f"{usable} of {os.cpu_count()} usable by this process", None
    memory = psutil.virtual_memory()
    yield "memory", f"{_gib(memory.available)} of {_gib(memory.total)} available", None
    gpus = local_gpus()
    yield "GPUs", f"{len(gpus)} ({', '.join(map(str, gpus))})" if gpus else "none", None
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm")
        small = shared.free < LEAST_SHARED_MEMORY
        yield (
            "/dev/shm",
            f"{_gib(shared.free)} of {_gib(shared.total)} free",
            "Dragon and vLLM need about 1 GiB; remove old files there, or make it larger (in a "
            "container: --shm-size=2g)"
            if small
            else None,
        )
    folder = tempfile.gettempdir()
    advice = None
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        advice = "too long for Unix sockets; set TMPDIR to a short path such as /tmp"
    yield "TMPDIR", f"{folder}, {_gib(shutil.disk_usage(folder).free)} free", advice


def _limits() -> Found:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = hard != resource.RLIM_INFINITY and hard < FEWEST_DESCRIPTORS
    advice = f"few executables can run at a time; ask for 'ulimit -Hn' {FEWEST_DESCRIPTORS} or more"
    yield "open files", f"{_limit(soft)}, at most {_limit(hard)}", advice if low else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    yield "processes", f"{_limit(soft)}, at most {_limit(hard)}", None


def _allocation() -> Found:
    jobs = [
        f"{name} job {os.environ[key]}" for key, name in SCHEDULERS.items() if key in os.environ
    ]
    yield "batch system", ", ".join(jobs) or "not in a job", None
    if not is_under_dragon():
        yield "Dragon", "not started with the dragon command", None
        return
    nodes = allocation()
    names = ", ".join(node.name for node in nodes[:4]) + (", ..." if len(nodes) > 4 else "")
    yield "Dragon", f"{len(nodes)} nodes: {names}", None
    yield "GPUs by node", ", ".join(str(len(node.gpus)) for node in nodes[:16]), None


def _choices() -> Found:
    backends = [
        name
        for name, usable in (
            ("concurrent", True),
            ("dask", find_spec("distributed") is not None),
            ("dragon", is_under_dragon()),
        )
        if usable
    ]
    yield "compute backends", ", ".join(backends), None
    launcher = "dragon" if is_under_dragon() else "local"
    engine = "vllm" if _version("vllm") else "embedded, which is not a real model"
    yield "models", f"engine {engine}; launcher {launcher}", None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _as_text(found: list[Fact]) -> str:
    lines: list[str] = []
    section = ""
    for fact in found:
        if fact.section != section:
            section = fact.section
            lines += ["", section] if lines else [section]
        mark = "!" if fact.advice else " "
        lines.append(f"{mark} {fact.name:<18} {fact.value}")
        if fact.advice:
            lines.append(f"  {'':<18} -> {fact.advice}")
    problems = sum(fact.advice is not None for fact in found)
    lines += [
        "",
        "No problems found." if not problems else f"Problems: {problems}, marked with '!'.",
    ]
    return "\n".join(lines)
