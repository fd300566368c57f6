"""The replica pool: queues prompts, spreads them over replicas, and restarts dead replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rhapsody.errors import ReplicaError
from rhapsody.inference.batcher import Batcher
from rhapsody.inference.prefix_keys import Keys
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replicas.prefixes import PrefixRouter
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.room import FILL, Room
from rhapsody.inference.replicas.scaling import Scaling
from rhapsody.inference.replicas.shares import even_shares
from rhapsody.waiting import done_within

__all__ = ["MakeReplicas", "ReplicaPool"]

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 30.0

WINDOW = 4
"""Prompts of one request that are in progress, for each that the servers work on at a time."""
MIN_WINDOW = 2048
SLACK_PART = 8
"""A server whose load is higher by this part of its limit still gets prompts for a prefix."""
MIN_SLACK = 4

MakeReplicas = Callable[[Callable[[], None]], Sequence[Replica]]
"""Makes the replicas of a pool, given the function that each calls when it has room."""
_Work = Callable[[Replica], Coroutine[Any, Any, None]]


class ReplicaPool:
    """Keeps replicas alive, and sends them batches of the prompts that are put into it.

    Args:
        make_replicas: Makes the replicas, not yet started.
        max_retries: How often a prompt is sent again if its server dies.
        max_restarts: How often in a row each server is restarted.
        restart_window: A restart counts as in a row if the server ran shorter, in seconds.
        startup_timeout: Longest time for a server to become ready, in seconds.
        health_interval: Seconds between health checks.
        hang_timeout: Seconds without a response after which a server counts as dead.
        max_batch_size: Maximum number of prompts in a batch.
        max_batch_wait: Longest time a prompt waits while all replicas are busy, in seconds.
        prefix_routing: Whether prompts go to servers that have their beginnings in their caches.
        on_batch: Called for each batch with its prompts, and the seconds that each has waited.
        scaling: The bounds on the number of replicas, if a `Scaler` adds and removes some.
    """

    def __init__(
        self,
        make_replicas: MakeReplicas,
        *,
        max_retries: int,
        max_restarts: int,
        restart_window: float,
        startup_timeout: float,
        health_interval: float,
        hang_timeout: float,
        max_batch_size: int,
        max_batch_wait: float,
        prefix_routing: bool = True,
        on_batch: Callable[[list[PromptRequest], list[float]], None] | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        self.failure: ReplicaError | None = None
        """Why the pool accepts no more prompts; None while it accepts them."""
        self._max_retries = max_retries
        self._max_restarts = max_restarts
        self._startup_timeout = startup_timeout
        self._restart_window = restart_window
        self._health_interval = health_interval
        self._hang_timeout = hang_timeout
        self.scaling = scaling
        # Prompts beyond the queue of the servers wait here for servers that are added.
        self.room = Room() if scaling is None else Room(FILL)

        def batcher(
            capacity: Callable[[], int | None], beyond: Callable[[], int] | None
        ) -> Batcher[PromptRequest]:
            return Batcher(
                self.dispatch,
                capacity,
                max_batch_size=max_batch_size,
                max_wait=max_batch_wait,
                beyond=beyond,
                order=lambda request: request.order,
                on_batch=on_batch,
            )

        self._urgent = batcher(self.capacity, None)
        self._ordinary = batcher(self.ordinary_capacity, lambda: self.room.beyond(self.ready))
        self._batchers = (self._urgent, self._ordinary)
        self.on_demand: Callable[[], None] = lambda: None
        """Called if prompts wait and no server takes any."""
        self.on_given_up: Callable[[Replica], None] = lambda replica: None
        """Called with a server that could not be started again, if others are left."""
        self._changed = asyncio.Event()
        """Set if servers may have room, have become ready, or will never be ready again."""
        self._requests_waiting = 0
        self.replicas = list(make_replicas(self.on_room))
        self.router: PrefixRouter[Replica] | None = None
        if prefix_routing and self.most_replicas > 1:
            self.router = PrefixRouter(MIN_SLACK)
        self._supervisors: dict[Replica, asyncio.Task[None]] = {}

    @property
    def most_replicas(self) -> int:
        """The largest number of replicas that there may be."""
        return max(len(self.replicas), self.scaling.largest if self.scaling is not None else 0)

    @property
    def starts_on_demand(self) -> bool:
        """Whether a prompt starts a server if none runs."""
        return self.scaling is not None and not self.scaling.smallest and self.failure is None

    @property
    def prompts(self) -> int:
        """Prompts that wait, or are in flight at servers that stay."""
        in_flight = sum(one.in_flight for one in self.replicas if not one.draining)
        return sum(map(len, self._batchers)) + self._requests_waiting + in_flight

    async def start(self) -> None:
        """Start all servers at once and wait until all are ready.

        Raises:
            ReplicaError: A server exited or was too slow. All have been stopped.
        """
        starts = [
            asyncio.ensure_future(replica.start(self._startup_timeout)) for replica in self.replicas
        ]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self._stop_replicas()
            raise
        for replica in self.replicas:
            self._begin(replica, self._keep_alive)

    def add(self, replica: Replica) -> None:
        """Start a server beside the others, in the background."""
        self.replicas.append(replica)
        self._begin(replica, self._start_added)
        self._use_spares()

    def _begin(self, replica: Replica, work: _Work) -> None:
        supervising = self._supervise(replica, work)
        self._supervisors[replica] = asyncio.get_running_loop().create_task(supervising)

    async def drain(self, replica: Replica) -> bool:
        """Stop and remove a server whose `draining` is set, when its prompts have ended.

        A server that is paused is left until it is not.

        Returns:
            Whether it was removed; False if its `draining` was reset meanwhile.
        """
        while (replica.in_flight or replica.paused) and replica.draining:
            self._changed.clear()
            await self._changed.wait()
        if not replica.draining:
            return False
        replica.state = "STOPPED"  # from here on it cannot be needed again
        await self.remove(replica)
        return True

    async def remove(self, replica: Replica) -> None:
        """Stop a server, also if it is starting, and forget it."""
        if (supervisor := self._supervisors.pop(replica, None)) is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        await replica.stop("STOPPED")
        self.replicas.remove(replica)
        if self.router is not None:
            self.router.forget(replica)

    def close(self, error: ReplicaError) -> None:
        """Accept no more prompts; `failure` becomes the error, unless it is set already."""
        if self.failure is None:
            self.failure = error
        self._changed.set()

    async def stop(self) -> None:
        """Drop the waiting prompts and stop all servers."""
        for batcher in self._batchers:
            batcher.clear()
            await batcher.close()
        supervisors = list(self._supervisors.values())
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        await self._stop_replicas()

    async def _stop_replicas(self) -> None:
        await asyncio.gather(*(replica.stop("STOPPED") for replica in self.replicas))

    def kill(self) -> None:
        """Kill all servers at once, at the exit of this process."""
        for replica in self.replicas:
            replica.kill()

    async def _supervise(self, replica: Replica, work: _Work) -> None:
        try:
            await work(replica)
        except Exception as error:  # a bug: without a supervisor, prompts would wait forever
            logger.exception("model server %d is no longer supervised", replica.index)
            await replica.stop()
            self._give_up(
                replica, ReplicaError(f"supervising model server {replica.index}: {error!r}")
            )

    async def _start_added(self, replica: Replica) -> None:
        try:
            await replica.start(self._startup_timeout)
        except ReplicaError as error:
            logger.error("%s", error)
            if not await self._restart_in_a_row(replica, 0, error):
                return
        await self._keep_alive(replica)

    async def _keep_alive(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            since = loop.time()
            reason = await replica.watch(self._health_interval, self._hang_timeout)
            error = await asyncio.to_thread(replica.failure, reason)
            logger.error("%s", error)
            if self.router is not None:
                self.router.forget(replica)
            await replica.retire()
            self._use_spares()
            if replica.draining:
                return
            if loop.time() - since > self._restart_window:
                in_a_row = 0
            in_a_row = await self._restart_in_a_row(replica, in_a_row, error)
            if not in_a_row:
                return
            self._use_spares()

    async def _restart_in_a_row(self, replica: Replica, number: int, error: ReplicaError) -> int:
        """Start a server again, several times if it fails.

        Args:
            replica: The server.
            number: Restarts in a row before this one.
            error: Why it must be started again.

        Returns:
            Restarts in a row; 0 if there were too many, and the server was given up.
        """
        while number < self._max_restarts:
            number += 1
            start_error = await self._restart(replica, number)
            if start_error is None:
                return number
            error = start_error
        self._give_up(replica, error)
        return 0

    def on_room(self) -> None:
        """Use the room that a server may have, or the server that has become ready."""
        if self._supervisors:  # not while the servers start
            self._use_spares()
        self.wake()

    def wake(self) -> None:
        """Check whether prompts can be sent, and servers be stopped."""
        self._changed.set()
        self._wake_batchers()

    def _wake_batchers(self) -> None:
        for batcher in self._batchers:
            batcher.wake()

    def _use_spares(self) -> None:
        """Let spare servers that are ready take the places of servers that are not."""
        for replica in self.replicas:
            if replica.spare or replica.draining or replica.state in ("READY", "UNHEALTHY"):
                continue
            for other in self.replicas:
                if other.spare and other.state == "READY":
                    logger.info("model server %d takes over for %d", other.index, replica.index)
                    replica.spare, other.spare = True, False
                    self._wake_batchers()
                    break

    async def _restart(self, replica: Replica, in_a_row: int) -> ReplicaError | None:
        """Start a server again after a pause. Returns why it could not start, or None."""
        replica.restarts += 1
        await asyncio.sleep(min(BACKOFF_SECONDS * 2**in_a_row, MAX_BACKOFF_SECONDS))
        try:
            await replica.start(self._startup_timeout)
        except ReplicaError as error:
            logger.error("%s", error)
            return error
        return None

    def _give_up(self, replica: Replica, error: ReplicaError) -> None:
        """Give up on a server. If it was the last one, fail all waiting prompts."""
        replica.state = "FAILED"
        self._use_spares()
        # No prompt has waited for a spare: an elastic pool without replicas can still start one.
        needed = self.scaling is None or not replica.spare
        if needed and all(other.state == "FAILED" for other in self.replicas):
            logger.error("no model server is left; the last one: %s", error)
            # Every waiting prompt gets this error, so it has no log.
            self.failure = ReplicaError(
                f"no model server is left: {error.reason}, and max_restarts="
                f"{self._max_restarts} is used up"
            )
            self._changed.set()
            for batcher in self._batchers:
                for request in batcher.clear():
                    request.fail(self.failure)
        else:
            self.on_given_up(replica)

    def put(self, request: PromptRequest) -> None:
        """Add a prompt to the queue."""
        if request.urgent:
            self.room.note_urgent()
        self._batcher_of(request).put(request)
        if self.scaling is not None and not self.ready:
            self.on_demand()

    def _batcher_of(self, request: PromptRequest) -> Batcher[PromptRequest]:
        return self._urgent if request.urgent else self._ordinary

    def cancel(self, request: PromptRequest) -> None:
        """Take a prompt out of the queue, or have its server stop working on it."""
        if not self._batcher_of(request).remove(request) and request.replica is not None:
            request.replica.connection.cancel(request.id)

    @property
    def ready(self) -> list[Replica]:
        """The servers that take prompts now."""
        return [
            one
            for one in self.replicas
            if one.state == "READY" and not (one.spare or one.draining or one.paused)
        ]

    @property
    def is_paused(self) -> bool:
        """Whether a server takes no prompts for the moment."""
        return any(one.paused for one in self.replicas)

    @asynccontextmanager
    async def paused(self, replica: Replica, seconds: float | None = None) -> AsyncIterator[None]:
        """Send a server no prompts in the context, which begins when those that it has have ended.

        Args:
            replica: The server.
            seconds: Longest time to wait for that. None: no limit.

        Raises:
            ReplicaError: They have not ended in time.
        """
        replica.paused = True
        try:
            if replica.in_flight and not await done_within(self._wait_idle(replica), seconds):
                raise ReplicaError(
                    f"model server {replica.index} has not finished its requests in {seconds:g} s"
                )
            yield
        finally:
            replica.paused = False
            self.wake()

    async def _wait_idle(self, replica: Replica) -> None:
        while replica.in_flight:
            self._changed.clear()
            await self._changed.wait()

    async def wait_ready(self) -> None:
        """Wait until a server takes prompts. In a pool that grows, this starts one."""
        self._requests_waiting += 1
        try:
            while not self.ready and self.failure is None:
                self._changed.clear()
                self.on_demand()
                await self._changed.wait()
        finally:
            self._requests_waiting -= 1

    @property
    def kinds(self) -> frozenset[str] | None:
        """The kinds of AI task that the model takes; None until a server has said it."""
        return next((one.kinds for one in self.replicas if one.kinds is not None), None)

    def capacity(self) -> int | None:
        """Return how many urgent prompts may be sent at once; None if none may, even later."""
        return self._capacity(self.room.for_urgent)

    def ordinary_capacity(self) -> int | None:
        """Return how many ordinary prompts may be sent at once; None if none may, even later."""
        return self._capacity(self.room.for_ordinary)

    def _capacity(self, room: Callable[[list[Replica]], int]) -> int | None:
        ready = self.ready
        if self.scaling is not None:
            return room(ready) or None
        return room(ready) if ready else None

    @property
    def window(self) -> int:
        """How many prompts of one request should be in progress, so that no server idles."""
        return max(MIN_WINDOW, WINDOW * sum(replica.limit for replica in self.replicas))

    def least_loaded(self) -> Replica | None:
        """Return the ready server with the fewest prompts in flight."""
        return min(self.ready, key=lambda replica: replica.in_flight, default=None)

    def choose(self, keys: Callable[[], Keys]) -> Replica | None:
        """Return the ready server for one request; None if no server is ready.

        Args:
            keys: Returns the hashes of the beginnings of its prompt.
        """
        ready = self.ready
        if self.router is not None and len(ready) > 1 and (found := keys()):
            return self._routed(found, {replica: replica.in_flight for replica in ready})
        return self.least_loaded()

    def _routed(self, keys: Keys, loads: dict[Replica, int]) -> Replica:
        assert self.router is not None
        self.router.slack = max(MIN_SLACK, min(one.limit for one in loads) // SLACK_PART)
        return self.router.choose(keys, loads)

    def dispatch(self, batch: Sequence[PromptRequest]) -> Coroutine[Any, Any, None]:
        """Send a batch, spread so that the servers' loads become even.

        Prompts whose server died return to the queue, or fail after too many attempts.

        Args:
            batch: Prompts; at least one server is ready.

        Returns:
            A coroutine that ends when the whole batch has ended. The servers' room is reserved
            before this returns.
        """
        shares = self._shares(batch)
        for replica, share in shares:
            replica.reserve(share)
        return self._send_all(shares)

    async def _send_all(self, shares: list[tuple[Replica, list[PromptRequest]]]) -> None:
        await asyncio.gather(*(self._send(replica, share) for replica, share in shares))

    def _shares(self, batch: Sequence[PromptRequest]) -> list[tuple[Replica, list[PromptRequest]]]:
        loads = {replica: replica.in_flight for replica in self.ready}
        if self.router is None or len(loads) == 1:
            return even_shares(batch, loads)
        routed: dict[Replica, list[PromptRequest]] = {}
        others: list[PromptRequest] = []
        for request in batch:
            if keys := request.prefix_keys():
                replica = self._routed(keys, loads)
                loads[replica] += 1
                routed.setdefault(replica, []).append(request)
            else:
                others.append(request)
        return [*routed.items(), *(even_shares(others, loads) if others else ())]

    async def _send(self, replica: Replica, share: list[PromptRequest]) -> None:
        lost = await replica.send(share)
        retried = []
        for request in lost:
            request.attempts += 1
            request.replica = None
            if self.failure is None and request.can_retry and request.attempts <= self._max_retries:
                retried.append(request)
            else:
                request.fail(self._loss_of(replica, request))
        for batcher in self._batchers:
            if again := [one for one in retried if self._batcher_of(one) is batcher]:
                batcher.put_back(again)

    def _loss_of(self, replica: Replica, request: PromptRequest) -> ReplicaError:
        if self.failure is not None:
            return self.failure
        how = f"{request.attempts} times" if request.can_retry else "in the middle of the stream"
        return ReplicaError(
            f"the connection to model server {replica.index} was lost {how} (max_retries="
            f"{self._max_retries}); the log of this program has the reason"
        )
