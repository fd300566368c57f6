"""GPUs: which ones this machine has, and which of them this program uses."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from weakref import WeakMethod, WeakSet

from rhapsody.allocation import Gpu, Node

__all__ = [
    "GPUS",
    "PARTS",
    "VARIABLES",
    "GpuLedger",
    "assign_gpus",
    "assigned_gpus",
    "local_gpus",
    "this_machine",
]

logger = logging.getLogger(__name__)

THIS_MACHINE = "this machine"
"""Name of the node that is this machine, where no allocation names it."""

PARTS = 10_000
"""Parts of one GPU. Fractions are counted in whole parts, so that their sums are exact."""

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""The variables that limit a process to some GPUs: of NVIDIA, AMD and Intel."""


def _visible_variable() -> str:
    """Return the first of the variables that is set; CUDA_VISIBLE_DEVICES if none is."""
    return next((name for name in VARIABLES if name in os.environ), VARIABLES[0])


_assigned: ContextVar[tuple[Gpu, ...] | None] = ContextVar("rhapsody_gpus", default=None)


def assigned_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of the task that calls this function.

    In a thread they are those that the backend has assigned; threads share the environment of the
    program. In any other process they are those of the first of the `VARIABLES` that is set.
    """
    assigned = _assigned.get()
    return _visible_gpus() or () if assigned is None else assigned


def assign_gpus(gpus: tuple[Gpu, ...]) -> None:
    """Set the GPUs of the task that runs in the current context."""
    _assigned.set(gpus)


def _visible_gpus() -> tuple[Gpu, ...] | None:
    visible = os.environ.get(_visible_variable())
    if visible is None:
        return None
    return tuple(gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1"))


def local_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of this machine that may be used, in order of preference.

    CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES or ZE_AFFINITY_MASK decides if it is set. Otherwise
    `nvidia-smi` lists the GPUs, and those with the most free memory come first.
    """
    visible = _visible_gpus()
    return _listed_gpus() if visible is None else visible


def _listed_gpus() -> tuple[Gpu, ...]:
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        gpus = [line.split(",") for line in listed.stdout.splitlines() if line.strip()]
        # Compared in whole GiB, so that small differences in use do not change the order.
        by_use = sorted((int(used) // 1024, int(index)) for index, used in gpus)
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("nvidia-smi failed, so no GPU is used: %s", error)
        return ()
    return tuple(index for _, index in by_use)


def this_machine() -> Node:
    """Describe this machine as a node, with its GPUs. May take a second to list them."""
    return Node(THIS_MACHINE, os.cpu_count() or 1, local_gpus(), _visible_variable(), True)


def _canonical(node: str, gpu: Gpu) -> tuple[str, str]:
    """Return the one name that the ledger has for a GPU."""
    if node.partition(".")[0] == socket.gethostname().partition(".")[0]:
        node = THIS_MACHINE
    return node, str(gpu)


class GpuLedger:
    """How much of each GPU is in use: by tasks of all backends, and by replicas of models.

    Thread-safe. A GPU of this machine has many names: its node is "this machine" or the host name,
    with or without a domain, and its number is a number or text.
    """

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._listeners: list[WeakMethod[Callable[[], None]]] = []
        self._short: WeakSet[object] = WeakSet()

    @property
    def is_short(self) -> bool:
        """Whether tasks wait for GPUs."""
        return len(self._short) > 0

    def set_short(self, owner: object, short: bool) -> None:
        """Note whether tasks wait for GPUs, which makes idle replicas of models end sooner.

        Args:
            owner: What starts the tasks: the account of a backend.
            short: Whether some of its tasks wait.
        """
        with self._lock:
            (self._short.add if short else self._short.discard)(owner)

    def free_parts(self, node: str, gpu: Gpu) -> int:
        """Return how many parts of a GPU are free."""
        return PARTS - self._used.get(_canonical(node, gpu), 0)

    def take(self, gpus: Iterable[tuple[str, Gpu]], parts: int = PARTS) -> bool:
        """Mark parts of each of some GPUs as used; return False if one has too few free parts."""
        names = [_canonical(*gpu) for gpu in gpus]
        with self._lock:
            if any(self._used.get(gpu, 0) + parts > PARTS for gpu in names):
                return False
            for gpu in names:
                self._used[gpu] = self._used.get(gpu, 0) + parts
        return True

    def put_back(self, gpus: Iterable[tuple[str, Gpu]], parts: int = PARTS) -> None:
        """Undo a `take` at once: no listener is told, since no more is free than before."""
        with self._lock:
            for gpu in [_canonical(*gpu) for gpu in gpus]:
                rest = self._used.get(gpu, 0) - parts
                if rest > 0:
                    self._used[gpu] = rest
                else:
                    self._used.pop(gpu, None)

    def release(self, gpus: Iterable[tuple[str, Gpu]], parts: int = PARTS) -> None:
        """Mark parts of GPUs as free again, and tell the listeners."""
        self.put_back(gpus, parts)
        for listener in tuple(self._listeners):
            call = listener()
            if call is not None:
                call()

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call a method, in any thread, whenever GPUs were released, while its object exists."""
        with self._lock:
            known = [one for one in self._listeners if one() is not None]
            self._listeners = [*known, WeakMethod(listener)]


GPUS = GpuLedger()
"""The GPUs that this program uses."""
