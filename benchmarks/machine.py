"""The machine and the versions that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = ["PACKAGES", "Machine", "load", "missing", "this_machine"]

PACKAGES = {
    "Rhapsody": "rhapsody",
    "AsyncFlow": "radical.asyncflow",
    "Dask": "distributed",
    "Dragon": "dragonhpc",
    "vLLM": "vllm",
    "torch": "torch",
    "aiohttp": "aiohttp",
}
"""Display names, and names of the packages."""


class Machine(BaseModel):
    """Machine and versions, which all figures of one table share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    cores: int
    """Cores that this process may use."""
    memory_gib: int
    system: str
    python: str
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib} GiB of memory, "
            f"{self.system}; Python {self.python}, {versions}"
        )


def this_machine() -> Machine:
    """Describe the machine and the environment of this process."""
    return Machine(
        processor=_processor(),
        cores=_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        versions={name: version for name in PACKAGES if (version := _version_of(name))},
    )


def missing(runtime: str | None) -> str | None:
    """Return a message if a runtime, named as in `PACKAGES`, is not installed."""
    if runtime is None or _version_of(runtime):
        return None
    return f"{runtime} is not installed; `make runtimes` installs it"


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 1)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version_of(name: str) -> str | None:
    package = PACKAGES[name]
    # vLLM's CPU build is published under another name.
    for published_as in (package, f"{package}-cpu"):
        try:
            return metadata.version(published_as)
        except metadata.PackageNotFoundError:
            continue
    return None
