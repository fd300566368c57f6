"""The nodes of an allocation that a backend uses, and how many workers may run on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rhapsody.allocation import Node
from rhapsody.errors import ConfigurationError

__all__ = ["choose_nodes", "head_first", "most_workers"]

logger = logging.getLogger(__name__)

WORKERS_PER_CPU = 8
"""Upper limit of worker processes per CPU; each process takes about 40 MB of memory."""


def head_first(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes with the head node first."""
    return sorted(nodes, key=lambda node: not node.is_head)


def choose_nodes(nodes: Sequence[Node], wanted: int | Sequence[str] | None) -> list[Node]:
    """Return the nodes that a backend may use.

    Args:
        nodes: All nodes of the allocation.
        wanted: The number of nodes, counted from the first, or their names; None for all.

    Raises:
        ConfigurationError: The allocation has too few nodes, or no node of a given name.
    """
    if wanted is None:
        return list(nodes)
    if isinstance(wanted, int):
        if wanted > len(nodes):
            raise ConfigurationError(
                f"nodes={wanted} asks for more nodes than the {len(nodes)} of this allocation"
            )
        return list(nodes[:wanted])
    if not wanted:
        raise ConfigurationError("nodes must name at least one node; omit it to use all nodes")
    by_name = {node.name: node for node in nodes}
    if unknown := [name for name in wanted if name not in by_name]:
        raise ConfigurationError(
            f"nodes names {', '.join(unknown)}, not in this allocation of {', '.join(by_name)}"
        )
    return [by_name[name] for name in wanted]


def most_workers(backend_name: str, nodes: Sequence[Node], wanted: int | None) -> int:
    """Return the upper limit of workers over all nodes.

    A script written for a thousand nodes asks for thousands of workers; on a laptop the limit is
    `WORKERS_PER_CPU` for each CPU.

    Args:
        backend_name: Name of the backend, for the log.
        nodes: Nodes that workers may run on.
        wanted: The number asked for. None: one per CPU, less one on the head node, at least one.
    """
    if wanted is None:
        return max(1, sum(node.cpus - node.is_head for node in nodes))
    cpus = sum(node.cpus for node in nodes)
    most = WORKERS_PER_CPU * max(1, cpus)
    if wanted > most:
        logger.warning(
            "backend '%s': num_workers=%d exceeds %d per CPU on %d CPUs; at most %d workers will "
            "be started",
            backend_name,
            wanted,
            WORKERS_PER_CPU,
            cpus,
            most,
        )
    return min(wanted, most)
