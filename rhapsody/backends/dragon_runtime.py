"""The Dragon runtime that this process was started under: whether there is one, and its hosts."""

from __future__ import annotations

import heapq
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhapsody.api.errors import BackendError, ConfigurationError, MissingExtraError

__all__ = [
    "Host",
    "allocation",
    "choose_hosts",
    "most_workers",
    "require_runtime",
    "spread",
]

logger = logging.getLogger(__name__)

WORKERS_PER_CPU = 8
"""Worker processes for each CPU that there may be at most; each takes some 40 MB of its own."""


@dataclass(frozen=True)
class Host:
    """One node of an allocation.

    Attributes:
        name: Its host name.
        cpus: Logical CPUs.
        gpus: Numbers of its GPUs.
        is_head: Whether the program itself runs on it.
    """

    name: str
    cpus: int
    gpus: tuple[int, ...] = ()
    is_head: bool = False


def require_runtime(feature: str, backend_name: str) -> None:
    """Refuse to go on where there is no Dragon runtime.

    Args:
        feature: What needs it, for example a class name.
        backend_name: Name of the backend.

    Raises:
        MissingExtraError: The package `dragonhpc` is not installed.
        BackendError: The program was not started with the `dragon` command.
    """
    if importlib.util.find_spec("dragon") is None:
        raise MissingExtraError(feature, "dragonhpc", "dragon")
    if "DRAGON_MY_PUID" not in os.environ:
        raise BackendError(
            backend_name,
            f"{feature} needs the Dragon runtime, and this program was not started in one; launch "
            "it with `dragon script.py` instead of `python script.py` (`dragon -m` is for several "
            "nodes)",
        )


def allocation() -> list[Host]:
    """Return the hosts of the runtime, the head's own first, then as Dragon lists them."""
    from dragon.native.machine import Node, System, current

    here = current().h_uid
    nodes = sorted(map(Node, System().nodes), key=lambda node: node.h_uid != here)
    return [
        Host(node.hostname, node.num_cpus, tuple(node.gpus or ()), node.h_uid == here)
        for node in nodes
    ]


def choose_hosts(hosts: Sequence[Host], wanted: int | Sequence[str] | None) -> list[Host]:
    """Return the hosts that a backend may use.

    Args:
        hosts: All there are.
        wanted: How many, from the first on, or their names; None for all.

    Raises:
        ConfigurationError: There are not so many, or a name is not among them.
    """
    if wanted is None:
        return list(hosts)
    if isinstance(wanted, int):
        if wanted > len(hosts):
            raise ConfigurationError(
                f"nodes={wanted} asks for more nodes than the {len(hosts)} of this allocation"
            )
        return list(hosts[:wanted])
    if not wanted:
        raise ConfigurationError("nodes names no node; leave it out to use all of them")
    by_name = {host.name: host for host in hosts}
    if unknown := [name for name in wanted if name not in by_name]:
        raise ConfigurationError(
            f"nodes names {', '.join(unknown)}, not in this allocation of {', '.join(by_name)}"
        )
    return [by_name[name] for name in wanted]


def most_workers(backend_name: str, hosts: Sequence[Host], wanted: int | None) -> int:
    """Return how many workers there may be, of those wanted.

    A script for a thousand nodes asks for thousands, and must not start them on a laptop. None is
    one for each CPU, less one where the program itself runs; at least one.
    """
    if wanted is None:
        return max(1, sum(host.cpus - host.is_head for host in hosts))
    cpus = sum(host.cpus for host in hosts)
    most = WORKERS_PER_CPU * max(1, cpus)
    if wanted > most:
        logger.warning(
            "backend '%s': num_workers=%d is more than %d for each of the %d CPUs here; there will "
            "be %d at most",
            backend_name,
            wanted,
            WORKERS_PER_CPU,
            cpus,
            most,
        )
    return min(wanted, most)


def spread(hosts: Sequence[Host], load: Mapping[Host, int], count: int) -> list[Host]:
    """Place new workers, each on the host that has the fewest for its CPUs.

    Args:
        hosts: Where they may go; one that comes first goes before another like it.
        load: How many workers each has.
        count: How many new ones.
    """

    def entry(place: int, workers: int) -> tuple[float, int, int]:
        host = hosts[place]
        return (workers + 1) / max(1, host.cpus - host.is_head), place, workers

    heap = [entry(place, load.get(host, 0)) for place, host in enumerate(hosts)]
    heapq.heapify(heap)
    placed = []
    for _ in range(count):
        _, place, workers = heap[0]
        heapq.heapreplace(heap, entry(place, workers + 1))
        placed.append(hosts[place])
    return placed
