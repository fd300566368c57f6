"""Placement: which node and which GPUs each replica gets, computed before anything starts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rhapsody.api.errors import ResourceError

__all__ = ["Claims", "Host", "Place", "place"]

Gpu = int | str
"""A GPU's number on its node, or its UUID."""


@dataclass(frozen=True)
class Host:
    """A node of the allocation.

    Attributes:
        name: Its name, as the launcher knows it.
        gpus: Its GPUs that may be used, the best first.
        gpu_variable: The environment variable that limits a process to some of them.
    """

    name: str
    gpus: tuple[Gpu, ...] = ()
    gpu_variable: str = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """Where one replica runs.

    Attributes:
        host: Its node.
        gpus: Its GPUs; none for a replica on the CPU.
    """

    host: Host
    gpus: tuple[Gpu, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What limits the replica's processes to its GPUs."""
        return {self.host.gpu_variable: ",".join(map(str, self.gpus))}


def place(
    hosts: Sequence[Host], *, num_nodes: int, num_gpus: int, tp_size: int, offset: int
) -> list[Place]:
    """Give every replica its node and its GPUs.

    The nodes are `hosts[offset : offset + num_nodes]`, with `num_gpus // tp_size` replicas on each
    of them, or one on the CPU where `num_gpus` is 0.

    Args:
        hosts: The allocation.
        num_nodes: Nodes to use.
        num_gpus: GPUs to use on each of them.
        tp_size: GPUs of each replica.
        offset: The first node, counted from 0.

    Raises:
        ResourceError: The allocation has fewer nodes, or a node fewer GPUs.
    """
    if offset + num_nodes > len(hosts):
        one = len(hosts) == 1
        raise ResourceError(
            None,
            "node",
            f"num_nodes={num_nodes} from offset={offset} needs {offset + num_nodes} nodes, and "
            f"there {'is' if one else 'are'} {len(hosts)}; lower num_nodes or offset, or ask for a "
            "larger allocation",
        )
    used = hosts[offset : offset + num_nodes]
    for host in used:
        if len(host.gpus) < num_gpus:
            raise ResourceError(
                None,
                "gpu",
                f"num_gpus={num_gpus} on node '{host.name}', which has {len(host.gpus) or 'none'} "
                "that may be used; lower num_gpus, or pass num_gpus=0 to serve on the CPU",
            )
    if not num_gpus:
        return [Place(host) for host in used]
    return [
        Place(host, host.gpus[index * tp_size : (index + 1) * tp_size])
        for host in used
        for index in range(num_gpus // tp_size)
    ]


class Claims:
    """The GPUs that this program's backends use, so that no two take the same."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, Gpu]] = set()
        self._lock = threading.Lock()

    def place(
        self, hosts: Sequence[Host], *, num_nodes: int, num_gpus: int, tp_size: int, offset: int
    ) -> list[Place]:
        """Do as `place` does, among the GPUs that are free, and take them."""
        with self._lock:
            free = [
                replace(host, gpus=tuple(g for g in host.gpus if (host.name, g) not in self._taken))
                for host in hosts
            ]
            places = place(
                free, num_nodes=num_nodes, num_gpus=num_gpus, tp_size=tp_size, offset=offset
            )
            self._taken.update((p.host.name, gpu) for p in places for gpu in p.gpus)
        return places

    def release(self, places: Iterable[Place]) -> None:
        """Give the GPUs back."""
        with self._lock:
            self._taken.difference_update((p.host.name, gpu) for p in places for gpu in p.gpus)
