"""Placement: the node and the GPUs of each replica, computed before any process starts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rhapsody.allocation import Gpu, Node
from rhapsody.errors import ResourceError
from rhapsody.gpus import GPUS, PARTS, GpuLedger

__all__ = ["CLAIMS", "GpuClaims", "Place", "place"]


@dataclass(frozen=True)
class Place:
    """The node and the GPUs that one replica, or one rank of a replica, runs on.

    Attributes:
        node: Its node.
        gpus: Its GPUs; empty for a replica on the CPU.
        others: The places of the ranks above 0, if the replica spans several nodes.
    """

    node: Node
    gpus: tuple[Gpu, ...] = ()
    others: tuple[Place, ...] = ()

    @property
    def ranks(self) -> tuple[Place, ...]:
        """The places of all ranks, rank 0 first."""
        return (self, *self.others)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that limit the replica's processes to its GPUs."""
        return {self.node.gpu_variable: ",".join(map(str, self.gpus))}


def place(
    nodes: Sequence[Node], *, num_nodes: int, num_gpus: int, tp_size: int, offset: int
) -> list[Place]:
    """Return the node and the GPUs of each replica.

    The nodes are `nodes[offset : offset + num_nodes]`, with `num_gpus // tp_size` replicas on each
    node, or one on the CPU if `num_gpus` is 0.

    Args:
        nodes: The allocation.
        num_nodes: Nodes to use.
        num_gpus: GPUs to use on each node.
        tp_size: GPUs of each replica.
        offset: The first node, counted from 0.

    Raises:
        ResourceError: There are too few nodes, or a node has too few GPUs.
    """
    if offset + num_nodes > len(nodes):
        one = len(nodes) == 1
        raise ResourceError(
            None,
            "node",
            f"num_nodes={num_nodes} from offset={offset} needs {offset + num_nodes} nodes, and "
            f"there {'is' if one else 'are'} {len(nodes)}; lower num_nodes or offset, or ask for a "
            "larger allocation",
        )
    used = nodes[offset : offset + num_nodes]
    for node in used:
        if len(node.gpus) < num_gpus:
            raise ResourceError(
                None,
                "gpu",
                f"num_gpus={num_gpus} on node '{node.name}', which has {len(node.gpus) or 'none'} "
                "that may be used; lower num_gpus, or pass num_gpus=0 to serve on the CPU",
            )
    if not num_gpus:
        return [Place(node) for node in used]
    return [
        Place(node, node.gpus[index * tp_size : (index + 1) * tp_size])
        for node in used
        for index in range(num_gpus // tp_size)
    ]


class GpuClaims:
    """Places replicas on free GPUs, so that no two backends use the same one.

    Args:
        ledger: The GPUs in use. None: a ledger of its own.
    """

    def __init__(self, ledger: GpuLedger | None = None) -> None:
        self._ledger = ledger or GpuLedger()
        self._lock = threading.Lock()

    def place(
        self, nodes: Sequence[Node], *, num_nodes: int, num_gpus: int, tp_size: int, offset: int
    ) -> list[Place]:
        """Place replicas on free GPUs, and mark those GPUs as used. Arguments as for `place`."""
        with self._lock:
            while True:
                free = [replace(node, gpus=self._free_gpus(node)) for node in nodes]
                places = place(
                    free, num_nodes=num_nodes, num_gpus=num_gpus, tp_size=tp_size, offset=offset
                )
                if self._ledger.take(_gpus_of(places)):  # False: a task has just taken one
                    return places

    def _free_gpus(self, node: Node) -> tuple[Gpu, ...]:
        return tuple(g for g in node.gpus if self._ledger.free_parts(node.name, g) == PARTS)

    def place_more(
        self,
        nodes: Sequence[Node],
        number: int,
        num_gpus: int,
        parameter: str = "spares",
        ranks: int = 1,
    ) -> list[Place]:
        """Place replicas on nodes with free GPUs, in turn, and mark those GPUs as used.

        Args:
            nodes: The nodes to choose from.
            number: How many replicas.
            num_gpus: GPUs of each rank; 0: they run on the CPU.
            parameter: The parameter that asks for them, for errors.
            ranks: Ranks of each replica. They are on different nodes if there are as many.

        Raises:
            ResourceError: There are too few free GPUs.
        """
        with self._lock:
            while True:
                places = self._more_places(nodes, number, num_gpus, parameter, ranks)
                if self._ledger.take(_gpus_of(places)):  # False: a task has just taken one
                    return places

    def _more_places(
        self, nodes: Sequence[Node], number: int, num_gpus: int, parameter: str, ranks: int
    ) -> list[Place]:
        free = {node: list(self._free_gpus(node)) for node in nodes}
        places: list[Place] = []
        for index in range(number):
            begin = index * ranks % len(nodes) if nodes else 0
            found = _ranks_on([*nodes[begin:], *nodes[:begin]], free, num_gpus, ranks)
            if found is None:
                of_each = f"{num_gpus} free GPUs for each replica"
                if ranks > 1:
                    of_each = f"{num_gpus} free GPUs on each of {ranks} nodes for each replica"
                raise ResourceError(
                    None,
                    "gpu",
                    f"{parameter}={number} needs {of_each}, beside those in use, and there are "
                    f"GPUs for {len(places)}; lower {parameter} or tp_size",
                )
            places.append(found)
        return places

    def release(self, places: Iterable[Place]) -> None:
        """Mark the GPUs as free."""
        self._ledger.release(_gpus_of(places))


def _gpus_of(places: Iterable[Place]) -> list[tuple[str, Gpu]]:
    ranks = [rank for place in places for rank in place.ranks]
    return [(rank.node.name, gpu) for rank in ranks for gpu in rank.gpus]


def _ranks_on(
    nodes: Sequence[Node], free: Mapping[Node, list[Gpu]], num_gpus: int, ranks: int
) -> Place | None:
    """Return the places of the ranks of one replica, and remove their GPUs from the free ones.

    Args:
        nodes: The nodes, those first that come first.
        free: The free GPUs of each node.
        num_gpus: GPUs of each rank.
        ranks: How many ranks. If there are fewer nodes, they share nodes.
    """
    rounds = 1 if ranks <= len(nodes) else ranks
    found: list[Place] = []
    for node in [node for _ in range(rounds) for node in nodes]:
        if len(free[node]) >= num_gpus:
            found.append(Place(node, tuple(free[node][:num_gpus])))
            del free[node][:num_gpus]
        if len(found) == ranks:
            return Place(found[0].node, found[0].gpus, tuple(found[1:]))
    return None


CLAIMS = GpuClaims(GPUS)
"""The GPUs that the backends of this program use, for replicas and for tasks."""
