"""A server of several processes, one on each of several nodes: they start and end together.

vLLM spans nodes by one process on each: rank 0 serves HTTP, the others work for it. If a rank dies,
vLLM's rank 0 still responds to health checks, and the other ranks wait without end. So the group
counts as dead as soon as one of its processes exits, and all of them are ended then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import socket as sockets
from collections.abc import Mapping, Sequence
from pathlib import Path

from rhapsody.inference.replicas.launcher import Launcher, ServerProcess
from rhapsody.inference.replicas.placement import Place

__all__ = ["GroupLauncher", "GroupProcess"]

logger = logging.getLogger(__name__)

PORTS = range(20_000, 30_000)
"""Ports for the ranks to find each other; below those that systems give to outgoing connections."""
ATTEMPTS = 100
LOOPBACK = "127.0.0.1"
HOST_VARIABLE = "VLLM_HOST_IP"
"""vLLM's variable for the address at which the other ranks reach a process."""


class GroupLauncher:
    """Starts one process of a server for each rank.

    Args:
        place: The node and GPUs of rank 0, with those of the others.
        launchers: The launcher of each rank, rank 0 first.
    """

    def __init__(self, place: Place, launchers: Sequence[Launcher]) -> None:
        self._place = place
        self._launchers = list(launchers)

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> GroupProcess:
        """Start all ranks. If one cannot be started, those that were started are stopped.

        Args:
            command: Program and arguments, without the address and the ranks.
            environment: Variables added to those of the launchers' nodes.
            log: File for the output of rank 0; the others have files beside it.
            socket: Unix socket for rank 0 to listen on.

        Raises:
            OSError: A rank cannot be started.
        """
        nodes = {place.node.name for place in self._place.ranks}
        addresses = [
            LOOPBACK if len(nodes) == 1 else await asyncio.to_thread(_address_of, place.node.name)
            for place in self._place.ranks
        ]
        port = _free_port(addresses[0])
        starting = [
            asyncio.ensure_future(
                launcher.launch(
                    [*command, *_rank_arguments(rank, len(addresses), addresses[0], port)],
                    {**environment, HOST_VARIABLE: addresses[rank]},
                    log.with_suffix(f".rank{rank}.log") if rank else log,
                    socket.with_suffix(f".{rank}") if rank else socket,
                )
            )
            for rank, launcher in enumerate(self._launchers)
        ]
        try:
            return GroupProcess(await asyncio.gather(*starting))
        except BaseException:
            for start in starting:
                start.cancel()
            started = await asyncio.gather(*starting, return_exceptions=True)
            processes = [one for one in started if not isinstance(one, BaseException)]
            await asyncio.gather(*(process.stop() for process in processes))
            raise


def _rank_arguments(rank: int, ranks: int, address: str, port: int) -> list[str]:
    """Return vLLM's options for one of several ranks."""
    return [
        *("--nnodes", str(ranks)),
        *("--node-rank", str(rank)),
        *("--master-addr", address),
        *("--master-port", str(port)),
        *(["--headless"] if rank else []),
    ]


def _address_of(node: str) -> str:
    """Return the address of a node; its name if this machine cannot resolve it."""
    try:
        found = sockets.getaddrinfo(node, None, type=sockets.SOCK_STREAM)
    except OSError:
        return node
    return str(found[0][4][0])


def _free_port(address: str) -> int:
    """Return a port that is likely to be free: another node's ports cannot be tried from here.

    Rank 0 fails to start if it is not, and the group starts again with another one.
    """
    for _ in range(ATTEMPTS):
        port = random.choice(PORTS)
        family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
        with sockets.socket(family) as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
            return port
    raise OSError(f"no port from {PORTS.start} to {PORTS.stop} is free on {address}")


class GroupProcess:
    """The processes of a server, one for each rank.

    Args:
        ranks: The processes, rank 0 first.
    """

    def __init__(self, ranks: Sequence[ServerProcess]) -> None:
        self._ranks = list(ranks)
        self._failed: ServerProcess | None = None

    @property
    def pid(self) -> int:
        """Process id of rank 0 on its own node."""
        return self._ranks[0].pid

    @property
    def pids(self) -> list[int]:
        """Process ids of all ranks, on their own nodes."""
        return [rank.pid for rank in self._ranks]

    @property
    def address(self) -> str:
        """The address of rank 0."""
        return self._ranks[0].address

    @property
    def stopped(self) -> bool:
        """Whether all ranks have been stopped."""
        return all(rank.stopped for rank in self._ranks)

    async def wait(self) -> int:
        """Wait until one rank exits, and return its exit code."""
        waits = [asyncio.ensure_future(rank.wait()) for rank in self._ranks]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            number = next(rank for rank, wait in enumerate(waits) if wait.done())
        finally:
            for wait in waits:
                wait.cancel()
        code = waits[number].result()
        if self._failed is None:
            self._failed = self._ranks[number]
            if number:
                logger.error("rank %d of a model server exited with code %d", number, code)
        return code

    async def note_shared_memory(self) -> None:
        """Note the shared memory of all ranks, which `stop` removes."""
        await asyncio.gather(*(rank.note_shared_memory() for rank in self._ranks))

    async def stop(self, grace: float = 3.0) -> None:
        """Stop all ranks at once, as `ServerProcess.stop`."""
        if self._failed is not None:
            # Without one rank, the others only wait for it, and cannot exit by themselves.
            await self.note_shared_memory()
            self.kill()
        await asyncio.gather(*(rank.stop(grace) for rank in self._ranks))

    def kill(self) -> None:
        """Kill all ranks at once. May be called from any thread."""
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.kill()

    def log_tail(self) -> str:
        """Return the last lines of the rank that exited first, or of rank 0."""
        return (self._failed or self._ranks[0]).log_tail()
