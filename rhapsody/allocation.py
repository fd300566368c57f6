"""The Dragon allocation that this program runs in, and its nodes."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from rhapsody.errors import MissingExtraError

__all__ = ["Gpu", "Node", "allocation", "is_under_dragon", "require_dragon"]

Gpu = int | str
"""The number of a GPU on its node, or its UUID."""


@dataclass(frozen=True)
class Node:
    """One machine that tasks or model servers may run on.

    Attributes:
        name: Its host name, as Dragon knows it.
        cpus: Logical CPUs.
        gpus: GPUs that may be used, in order of preference.
        gpu_variable: The environment variable that limits a process to some of the GPUs.
        is_head: Whether this program itself runs on it.
    """

    name: str
    cpus: int = 1
    gpus: tuple[Gpu, ...] = ()
    gpu_variable: str = "CUDA_VISIBLE_DEVICES"
    is_head: bool = False


def require_dragon(feature: str, extra: str) -> None:
    """Check that Dragon is installed.

    Args:
        feature: What needs it, for example a class name.
        extra: The extra of this package that installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("dragon") is None:
        raise MissingExtraError(feature, "dragonhpc", extra)


def is_under_dragon() -> bool:
    """Return whether the `dragon` command started this program."""
    return "DRAGON_MY_PUID" in os.environ


def allocation() -> list[Node]:
    """Return the nodes of the allocation, in Dragon's order."""
    from dragon.native import machine

    here = machine.current().h_uid
    return [
        Node(
            node.hostname,
            node.num_cpus,
            tuple(node.gpus or ()),
            (node.gpu_env_str if node.gpus else None) or Node.gpu_variable,
            node.h_uid == here,
        )
        for node in map(machine.Node, machine.System().nodes)
    ]
