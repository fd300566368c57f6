"""Resources: what a task asks for, with the same names on every backend."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, InstanceOf, StrictFloat, StrictInt, StrictStr

from rhapsody.validation import Count, Fault, StrictModel

__all__ = [
    "MAX_PRIORITY",
    "Resources",
    "format_bytes",
    "is_priority",
    "machine_memory",
    "parse_memory",
]

MAX_PRIORITY = 2**31
"""The largest amount of a priority. The key of a waiting task is a float of seconds, which is exact
to microseconds up to this priority."""

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtp", 1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", 1)}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of this process's control group: of version 2, of version 1."""

MEMORY_DESCRIPTION = 'a number of bytes, or text such as "8 GB" or "512 MiB"'
GPUS_DESCRIPTION = "a whole number of GPUs, or a fraction of one such as 0.5"


def parse_memory(memory: int | str) -> int:
    """Return a number of bytes.

    Args:
        memory: The number itself, or text such as "8 GB" (8 * 10**9) or "8 GiB" (8 * 2**30).

    Raises:
        ValueError: It is neither, or less than one byte.
    """
    if isinstance(memory, str):
        amount = _AMOUNT.fullmatch(memory)
        unit = _UNITS.get(amount[2].lower()) if amount is not None else None
        if amount is None or unit is None:
            raise ValueError(f"memory must be {MEMORY_DESCRIPTION}, got {memory!r}")
        memory = int(float(amount[1]) * unit)
    if memory < 1:
        raise ValueError(f"memory must be at least one byte, got {memory!r}")
    return memory


def is_priority(value: Any) -> bool:
    """Return whether a value can be the priority of a task."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_PRIORITY


def _check_gpus(gpus: float) -> float:
    if gpus > 1 and gpus % 1 != 0:  # infinity, too
        raise ValueError
    return gpus


def _check_environment(variables: Mapping[Any, Any]) -> dict[str, str]:
    if not all(isinstance(text, str) for pair in variables.items() for text in pair):
        raise ValueError
    # No process can start with these.
    if any(not name or "=" in name or "\0" in name + value for name, value in variables.items()):
        raise ValueError
    return dict(variables)


def _check_names(nodes: Any) -> Any:
    if isinstance(nodes, list) and not nodes:
        raise ValueError
    return nodes


class Resources(StrictModel):
    """What a task asks for.

    Args:
        cpus: CPUs of each rank. On the concurrent backend these are places in its pool.
        gpus: GPUs of each rank: a whole number, or a fraction of one GPU, which other tasks share.
        memory: Memory of each rank, as a number of bytes or as text such as "8 GB".
        ranks: Processes of the task.
        nodes: The number of nodes for the ranks, or their names. None: any nodes.
        exclusive: Whether nothing else runs on the task's nodes at the same time.
        env: Environment variables of the task.

    Raises:
        ValueError: A resource is unknown, or has a wrong value.
    """

    noun: ClassVar[str] = "resource"

    cpus: Count = 1
    gpus: Annotated[
        StrictFloat, Field(ge=0, description=GPUS_DESCRIPTION), AfterValidator(_check_gpus)
    ] = 0
    memory: Annotated[
        StrictInt | StrictStr,
        AfterValidator(parse_memory),
        Field(description=MEMORY_DESCRIPTION),
    ] = 0
    ranks: Count = 1
    nodes: Annotated[
        Count | list[StrictStr] | None,
        AfterValidator(_check_names),
        Field(description="a whole number of nodes, or a list of their names"),
    ] = None
    exclusive: Annotated[bool, Field(description="a boolean")] = False
    env: Annotated[
        InstanceOf[dict[Any, Any]] | InstanceOf[Mapping[Any, Any]],
        AfterValidator(_check_environment),
        Field(description="a dict of names of variables to strings, without '=' in a name or NUL"),
    ] = Field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> Resources:
        """Return the resources that a task's field describes: a dict, or resources.

        Raises:
            ValueError: It is neither, or a resource is unknown or has a wrong value.
        """
        if isinstance(given, Resources):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(
                f"'resources' must be a dict such as {{'cpus': 2, 'gpus': 1}}, got {given!r}"
            )
        return cls(**given)

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a ValueError that says where the resource was given."""
        return ValueError(f"resources: {fault.message}")

    def describe(self) -> str:
        """Return the amounts that differ from the defaults, such as "cpus=2, gpus=1"."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        shown = {
            name: format_bytes(value) if name == "memory" else value
            for name, value in given.items()
            if name in self.model_fields_set
        }
        return ", ".join(f"{name}={_plain(value)}" for name, value in shown.items())


def format_bytes(amount: float) -> str:
    """Return an amount of memory as text, such as "8 GB"."""
    for power, prefix in reversed(list(enumerate(["", "k", "M", "G", "T", "P"]))):
        if amount >= 1000**power:
            return f"{amount / 1000**power:.4g} {prefix}B"
    return f"{amount:g} B"


def _plain(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def machine_memory() -> int | None:
    """Return the memory that this program may use, in bytes; None if unknown."""
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in CGROUP_LIMITS:
        with contextlib.suppress(ValueError, OSError):  # "max": no limit
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)
