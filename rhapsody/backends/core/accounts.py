"""Accounts: the resources of a backend's nodes, and which of them its tasks use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rhapsody.allocation import Gpu, Node
from rhapsody.gpus import GPUS, PARTS, GpuLedger
from rhapsody.resources import Resources, format_bytes

__all__ = ["PLAIN", "Account", "Capacity", "Grant", "Place", "Request"]


@dataclass(frozen=True)
class Request:
    """What a task takes from an account, for each of its ranks.

    Attributes:
        cpus: CPUs, or places in a pool.
        gpu_parts: Parts of GPUs; more than `PARTS` are whole GPUs.
        memory: Bytes.
        children: Child processes.
        ranks: Number of ranks.
        nodes: Names of the nodes, or their number. None: any nodes.
        exclusive: Whether nothing else may run on the nodes.
    """

    cpus: int = 1
    gpu_parts: int = 0
    memory: int = 0
    children: int = 0
    ranks: int = 1
    nodes: tuple[str, ...] | int | None = None
    exclusive: bool = False

    @classmethod
    def from_resources(
        cls, resources: Resources, cpus: int | None = None, children: int = 0
    ) -> Request:
        """Return the request of a task.

        Args:
            resources: What the task asks for.
            cpus: CPUs if the task does not state any. None: 1.
            children: Child processes of each rank.
        """
        stated = cpus is None or "cpus" in resources.model_fields_set
        nodes = resources.nodes
        return cls(
            cpus=resources.cpus if stated else cpus or 0,
            gpu_parts=max(int(resources.gpus * PARTS), 1) if resources.gpus else 0,
            memory=int(resources.memory),
            children=children,
            ranks=resources.ranks,
            nodes=tuple(nodes) if isinstance(nodes, list) else nodes,
            exclusive=resources.exclusive,
        )

    @property
    def gpus(self) -> int:
        """Number of GPUs that are used, in whole or in part."""
        return -(-self.gpu_parts // PARTS)

    @property
    def parts(self) -> int:
        """Parts that are used of each of these GPUs."""
        return min(self.gpu_parts, PARTS)

    def describe(self) -> str:
        """Return what is asked for, in words, such as "2 CPUs, 0.5 GPUs and 8 GB of memory"."""
        amounts = [f"{self.cpus} CPU{'s' * (self.cpus != 1)}"] if self.cpus else []
        if self.gpu_parts:
            amounts.append(f"{self.gpu_parts / PARTS:g} GPU{'s' * (self.gpu_parts != PARTS)}")
        if self.memory:
            amounts.append(f"{format_bytes(self.memory)} of memory")
        text = " and ".join([", ".join(amounts[:-1]), amounts[-1]] if amounts[1:] else amounts)
        if self.ranks > 1:
            text = f"{self.ranks} ranks with {text} each"
        if self.nodes is not None:
            named = isinstance(self.nodes, tuple)
            on = ", ".join(self.nodes) if isinstance(self.nodes, tuple) else str(self.nodes)
            text += f" on node {on}" if named else f" on {on} node{'s' * (on != '1')}"
        return text or "no resources"


PLAIN = Request()
"""The request of a task that asks for nothing: one CPU."""


@dataclass(frozen=True)
class Capacity:
    """What one node offers.

    Attributes:
        node: The node; its `cpus` are the CPUs or the places in the pool.
        memory: Bytes. None: not limited.
        children: Child processes. None: not limited.
    """

    node: Node
    memory: int | None = None
    children: int | None = None

    def describe(self) -> str:
        """Return what there is, such as "node1 has 4 CPUs, 2 GPUs and 16 GB of memory"."""
        cpus, gpus = self.node.cpus, len(self.node.gpus)
        text = f"{self.node.name} has {cpus} CPU{'s' * (cpus != 1)}"
        text += f", {gpus or 'no'} GPU{'s' * (gpus != 1)}"
        return text + (f" and {format_bytes(self.memory)} of memory" if self.memory else "")


@dataclass(frozen=True)
class Place:
    """Where one rank of a task runs.

    Attributes:
        node: Its node.
        gpus: Its GPUs on this node.
        parts: Parts that it uses of each of these GPUs.
    """

    node: Node
    gpus: tuple[Gpu, ...] = ()
    parts: int = PARTS

    @property
    def environment(self) -> dict[str, str]:
        """Variables that limit a process to the GPUs; empty without GPUs."""
        return {self.node.gpu_variable: ",".join(map(str, self.gpus))} if self.gpus else {}


@dataclass(frozen=True, eq=False)
class Grant:
    """Resources that a task has been given.

    Attributes:
        request: What it asked for.
        places: The place of each rank.
        hold: Number of the hold that it was given beside. 0: none.
    """

    request: Request
    places: tuple[Place, ...]
    hold: int = 0


class _NodeAccount:
    """The free resources of one node, and what is held for a task that waits."""

    def __init__(self, capacity: Capacity, ledger: GpuLedger) -> None:
        self.capacity = capacity
        self.node = capacity.node
        self.cpus = capacity.node.cpus
        self.memory = _or_infinite(capacity.memory)
        self.children = _or_infinite(capacity.children)
        self.tasks = 0
        self.is_exclusive = False
        self.plain = Grant(PLAIN, (Place(self.node),))
        self._ledger = ledger
        self.held: Request | None = None
        self._held_gpus: frozenset[Gpu] = frozenset()
        self._cpus_left = self._memory_left = self._children_left = 0.0

    def place(self, request: Request, holder: bool, is_first: bool = True) -> Place | None:
        """Charge one rank and return its place; None if it does not fit now.

        Args:
            request: What the rank needs.
            holder: Whether it is the task that resources are held for.
            is_first: Whether it is the first rank of its task on this node.
        """
        if (
            request.cpus > self.cpus
            or request.memory > self.memory
            or request.children > self.children
            or (is_first and (self.is_exclusive or (request.exclusive and self.tasks)))
        ):
            return None
        held = self.held
        if held is not None and not holder and not self._fits_beside(request, held):
            return None
        place = self.plain.places[0]
        if request.gpu_parts:
            place = self._with_gpus(request, holder)
            if not place.gpus:
                return None
        self._charge(request)
        if held is not None and not holder:
            self._count_beside(request, -1)
        return place

    def _count_beside(self, request: Request, sign: int) -> None:
        self._cpus_left += sign * request.cpus
        self._memory_left += sign * request.memory
        self._children_left += sign * request.children

    def _fits_beside(self, request: Request, held: Request) -> bool:
        return (
            not held.exclusive
            and not request.exclusive
            and request.cpus <= self._cpus_left
            and request.memory <= self._memory_left
            and request.children <= self._children_left
        )

    def _with_gpus(self, request: Request, holder: bool) -> Place:
        """Return a place with GPUs, or without if there are too few."""
        allowed = [gpu for gpu in self.node.gpus if holder or gpu not in self._held_gpus]
        gpus = self._least_free(allowed, request.parts)[: request.gpus]
        named = [(self.node.name, gpu) for gpu in gpus]
        if len(gpus) < request.gpus or not self._ledger.take(named, request.parts):
            return Place(self.node)
        return Place(self.node, tuple(gpus), request.parts)

    def _least_free(self, gpus: Sequence[Gpu], parts: int) -> list[Gpu]:
        """Return the GPUs with enough free parts, those first that will have the fewest left."""
        free = {gpu: self._ledger.free_parts(self.node.name, gpu) for gpu in gpus}
        return sorted((gpu for gpu in gpus if free[gpu] >= parts), key=free.__getitem__)

    def _charge(self, request: Request) -> None:
        self.cpus -= request.cpus
        self.memory -= request.memory
        self.children -= request.children
        self.tasks += 1
        self.is_exclusive |= request.exclusive

    def release(
        self, request: Request, place: Place, is_beside: bool, was_used: bool = True
    ) -> None:
        """Return the resources of one rank.

        Args:
            request: What it was charged for.
            place: Its place.
            is_beside: Whether it was charged during the present hold.
            was_used: Whether a task had it; otherwise nobody is told that GPUs are free.
        """
        if is_beside and self.held is not None:
            self._count_beside(request, 1)
        if place.gpus:
            give_back = self._ledger.release if was_used else self._ledger.put_back
            give_back([(self.node.name, gpu) for gpu in place.gpus], place.parts)
        self.cpus += request.cpus
        self.memory += request.memory
        self.children += request.children
        self.tasks -= 1
        if not self.tasks:
            self.is_exclusive = False

    def ranks_when_idle(self, request: Request) -> int:
        """Return how many ranks would fit if nothing ran on the node."""
        limits = [
            (self.node.cpus, request.cpus),
            (_or_infinite(self.capacity.memory), request.memory),
            (_or_infinite(self.capacity.children), request.children),
        ]
        fitting = [int(have // want) for have, want in limits if want and have != math.inf]
        most = min(fitting or [request.ranks])
        if request.gpus:
            gpus = len(self.node.gpus)
            shares = PARTS // request.parts
            most = min(most, gpus // request.gpus if request.gpu_parts >= PARTS else gpus * shares)
        return min(most, request.ranks)

    def hold(self, request: Request, ranks: int) -> None:
        """Hold resources for ranks that wait: tasks started from now on leave them free."""
        self.held = request
        self._cpus_left = self.node.cpus - ranks * request.cpus
        self._memory_left = _or_infinite(self.capacity.memory) - ranks * request.memory
        self._children_left = _or_infinite(self.capacity.children) - ranks * request.children
        free = {gpu: self._ledger.free_parts(self.node.name, gpu) for gpu in self.node.gpus}
        shares = PARTS // request.parts if 0 < request.gpu_parts < PARTS else 1
        wanted = -(-ranks * request.gpus // shares)
        self._held_gpus = frozenset(sorted(self.node.gpus, key=lambda gpu: -free[gpu])[:wanted])

    def drop_hold(self) -> None:
        """Hold nothing any longer."""
        self.held, self._held_gpus = None, frozenset()


class Account:
    """The resources of the nodes of one backend. Not thread-safe.

    If resources are held for a task, tasks that start later use only what the task would leave
    free. So it starts at the latest when all tasks have ended that ran when the hold began.

    Args:
        capacities: What each node offers.
        ledger: The GPUs in use, which all accounts share with the replicas of models.
    """

    def __init__(self, capacities: Sequence[Capacity], ledger: GpuLedger = GPUS) -> None:
        self._ledger = ledger
        self._nodes = [_NodeAccount(capacity, ledger) for capacity in capacities]
        self._by_name = {account.node.name: account for account in self._nodes}
        self._holds = 0
        self._hold = 0  # 0: none

    @property
    def cpus(self) -> int:
        """Number of CPUs, or places, of all nodes."""
        return sum(account.node.cpus for account in self._nodes)

    def shortage(self, request: Request) -> str | None:
        """Return why a request can never be met, with what there is; None if it can be met."""
        nodes = self._allowed(request)
        if not isinstance(nodes, str):
            if sum(account.ranks_when_idle(request) for account in nodes) >= request.ranks:
                return None
            there = "; ".join(account.capacity.describe() for account in nodes[:8])
            if len(nodes) > 8:
                there += f"; and {len(nodes) - 8} more nodes"
            nodes = there
        return f"it asks for {request.describe()}; {nodes}"

    def lacks(self, request: Request) -> str:
        """Return the kind of resource that is missing: "node", "gpu", "memory" or "cpu"."""
        nodes = self._allowed(request)
        if isinstance(nodes, str):
            return "node"
        for kind, part in (
            ("gpu", Request(0, request.gpu_parts, ranks=request.ranks)),
            ("memory", Request(0, memory=request.memory, ranks=request.ranks)),
        ):
            if sum(account.ranks_when_idle(part) for account in nodes) < request.ranks:
                return kind
        return "cpu"

    def _allowed(self, request: Request) -> list[_NodeAccount] | str:
        """Return the nodes that a request allows, or why there are none."""
        names = ", ".join(self._by_name)
        if request.nodes is None:
            return self._nodes
        if isinstance(request.nodes, int):
            if request.nodes > len(self._nodes):
                return f"the nodes are {names}"
            return self._nodes[: request.nodes]
        if unknown := [name for name in request.nodes if name not in self._by_name]:
            return f"there is no node {', '.join(unknown)}; the nodes are {names}"
        return [self._by_name[name] for name in request.nodes]

    def take(self, request: Request, holder: bool = False, inside: bool = False) -> Grant | None:
        """Give a task its resources; return None if they are not free now.

        Args:
            request: What the task asks for.
            holder: Whether it is the task that resources are held for.
            inside: Whether a task that runs waits for it. Then it also gets what is held for
                others, and runs beside an exclusive task.
        """
        nodes = self._nodes
        holder = holder or inside
        if request is PLAIN and len(nodes) == 1:
            account = nodes[0]
            if account.place(request, holder) is None:
                return None
            return replace(account.plain, hold=self._hold) if self._hold else account.plain
        allowed = self._allowed(request)
        places: list[Place] = []
        for account in () if isinstance(allowed, str) else allowed:
            is_first = not inside
            while len(places) < request.ranks:
                place = account.place(request, holder, is_first)
                if place is None:
                    break
                places.append(place)
                is_first = False
        grant = Grant(request, tuple(places), 0 if holder else self._hold)
        if len(places) < request.ranks:
            self._return(grant, was_used=False)
            if request.gpu_parts:
                self._ledger.set_short(self, True)
            return None
        return grant

    def none_waits(self) -> None:
        """Note that no task waits for GPUs any longer."""
        self._ledger.set_short(self, False)

    def release(self, grant: Grant) -> None:
        """Return the resources of a task that has ended."""
        self._return(grant, was_used=True)

    def _return(self, grant: Grant, was_used: bool) -> None:
        request = grant.request
        is_beside = grant.hold != 0 and grant.hold == self._hold
        for place in grant.places:
            self._by_name[place.node.name].release(request, place, is_beside, was_used)

    def hold(self, request: Request) -> None:
        """Hold resources for a task that waits, instead of those held before."""
        self.drop_hold()
        self._holds += 1
        self._hold = self._holds
        allowed = self._allowed(request)
        left = request.ranks
        for account in () if isinstance(allowed, str) else allowed:
            ranks = min(left, account.ranks_when_idle(request))
            if ranks > 0:
                account.hold(request, ranks)
                left -= ranks

    def drop_hold(self) -> None:
        """Hold nothing any longer."""
        self._hold = 0
        for account in self._nodes:
            account.drop_hold()


def _or_infinite(amount: int | None) -> float:
    return float("inf") if amount is None else amount
