"""The replica factory: makes the replicas of a model, with a node and GPUs for each."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rhapsody.allocation import Node
from rhapsody.errors import ResourceError
from rhapsody.gpus import GPUS
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.launchers.dragon import DragonLauncher
from rhapsody.inference.launchers.group import GroupLauncher
from rhapsody.inference.launchers.local import LocalLauncher
from rhapsody.inference.pacing import Pace
from rhapsody.inference.protocol.process import HANG_VARIABLE, KEY_VARIABLE
from rhapsody.inference.replicas.launcher import Launcher
from rhapsody.inference.replicas.placement import CLAIMS, Place
from rhapsody.inference.replicas.replica import Replica
from rhapsody.scratch import Scratch

__all__ = ["ReplicaFactory"]

Prepare = Callable[[Replica], Awaitable[None]]


class ReplicaFactory:
    """Makes replicas, and keeps the account of the GPUs that they use.

    Made by `create`.

    Args:
        config: The checked configuration.
        command: The command that starts a server.
        nodes: The nodes that replicas may run on.
        places: The node and the GPUs of each of the first replicas, spares last.
        scratch: The directory for sockets and logs, which `close` removes.
        prepare: Called with each server that has started, before it takes prompts.
    """

    def __init__(
        self,
        config: InferenceConfig,
        command: ServerCommand,
        nodes: Sequence[Node],
        places: Sequence[Place],
        scratch: Scratch,
        prepare: Prepare | None = None,
    ) -> None:
        self._prepare = prepare
        self._config = config
        self._command = command
        self._nodes = list(nodes)
        self._first = list(places)
        self._scratch = scratch
        self._places: dict[int, Place] = {}
        """The place of each replica, by its index."""
        self._pace = Pace()
        self._folder = Path.cwd()

    @classmethod
    def create(
        cls, config: InferenceConfig, command: ServerCommand, prepare: Prepare | None = None
    ) -> ReplicaFactory:
        """Make a factory, and take the GPUs of the first replicas. May take a second.

        Raises:
            ResourceError: There are too few nodes or GPUs.
        """
        nodes = config.nodes()
        places = config.places(nodes)
        try:
            places += config.spare_places(nodes)
            scratch = Scratch("model")
        except BaseException:
            CLAIMS.release(places)
            raise
        return cls(config, command, nodes, places, scratch, prepare)

    @property
    def tasks_wait(self) -> bool:
        """Whether tasks wait for GPUs that the replicas use."""
        return GPUS.is_short and any(place.gpus for place in self._places.values())

    def first(self, on_room: Callable[[], None]) -> list[Replica]:
        """Make the first replicas.

        Args:
            on_room: Called by each replica when it may have room.
        """
        places, self._first = self._first, []
        regular = len(places) - self._config.spares
        return [
            self._make(index, place, on_room, spare=index >= regular)
            for index, place in enumerate(places)
        ]

    def another(self, on_room: Callable[[], None]) -> Replica | None:
        """Make one more replica; None if its GPUs are not free now.

        Args:
            on_room: Called by the replica when it may have room.
        """
        gpus = self._config.gpus_per_rank
        nodes = [node for node in self._nodes if self._allows(node, gpus)]
        # The node with the fewest replicas first.
        used = [rank.node for place in self._places.values() for rank in place.ranks]
        nodes.sort(key=used.count)
        try:
            [place] = CLAIMS.place_more(nodes, 1, gpus, "replicas", self._config.ranks)
        except ResourceError:
            return None
        index = next(number for number in itertools.count() if number not in self._places)
        return self._make(index, place, on_room)

    def _allows(self, node: Node, gpus: int) -> bool:
        """Return whether `num_gpus` allows another replica on a node."""
        ranks = [rank for place in self._places.values() for rank in place.ranks]
        used = sum(len(rank.gpus) for rank in ranks if rank.node == node)
        return not gpus or used + gpus <= self._config.num_gpus

    def _make(
        self, index: int, place: Place, on_room: Callable[[], None], *, spare: bool = False
    ) -> Replica:
        self._places[index] = place
        environment = {
            **self._command.environment,
            KEY_VARIABLE: secrets.token_urlsafe(32),
            HANG_VARIABLE: str(self._config.hang_timeout),
        }
        return Replica(
            index,
            self._command.arguments,
            environment,
            self._scratch.path,
            self._command.limit,
            self._launcher(place),
            on_room,
            place,
            self._pace,
            self._command.advice,
            self._folder / f"{self._config.engine}-server-{index}.log",
            spare=spare,
            prepare=self._prepare,
        )

    def _launcher(self, place: Place) -> Launcher:
        kind = LocalLauncher if self._config.launcher == "local" else DragonLauncher
        if not place.others:
            return kind(place)
        return GroupLauncher(place, [kind(rank) for rank in place.ranks])

    def release(self, replica: Replica) -> None:
        """Give back the GPUs of a replica that has stopped."""
        CLAIMS.release([self._places.pop(replica.index)])

    def close(self) -> None:
        """Give back the GPUs of all replicas, which have stopped, and remove their files."""
        CLAIMS.release([*self._first, *self._places.values()])
        self._first = []
        self._places = {}
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the directory for sockets and logs."""
        self._scratch.remove()
