"""The scaler: adds replicas to a pool and drains others, as the scaling policy decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from rhapsody.inference.replicas.pool import ReplicaPool
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.scaling import Load, Scaling, ScalingPolicy
from rhapsody.waiting import done_within

__all__ = ["ReplicaSource", "Scaler"]

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.25
"""Time between decisions while there are replicas."""
PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
"""Pause before another replica is added after one could not start; it doubles each time."""


class ReplicaSource(Protocol):
    """Makes replicas, with the GPUs of each."""

    @property
    def tasks_wait(self) -> bool:
        """Whether tasks wait for GPUs."""

    def another(self, on_room: Callable[[], None]) -> Replica | None:
        """Make one more replica, not yet started; None if its GPUs are not free now.

        Args:
            on_room: Called by the replica when it may have room.
        """

    def release(self, replica: Replica) -> None:
        """Give back the GPUs of a replica that has stopped."""


class Scaler:
    """Keeps as many replicas in a pool as its load needs.

    Args:
        pool: The pool, whose `scaling` has the bounds; the decisions are noted there.
        policy: Decides how many replicas there should be.
        source: Makes the replicas.
    """

    def __init__(self, pool: ReplicaPool, policy: ScalingPolicy, source: ReplicaSource) -> None:
        assert pool.scaling is not None
        self._pool = pool
        self._policy = policy
        self._source = source
        self._scaling: Scaling = pool.scaling
        self._spares = 0
        """How many spares the pool has at its start, and is to keep."""
        self._limit = 0
        self._added: Replica | None = None
        """The last replica that was added, until it has started."""
        self._failed_in_a_row = 0
        self._not_before = 0.0
        self._is_blocked = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        pool.on_demand = self._wake.set
        pool.on_given_up = self._on_given_up

    def start(self) -> None:
        """Begin to decide. The pool has started."""
        self._spares = sum(one.spare for one in self._pool.replicas)
        self._run_in_background(self._run())

    async def stop(self) -> None:
        """Decide nothing any more. Replicas that are drained stay in the pool."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._pool.failure is None:
            self._wake.clear()
            try:
                self._step()
            except Exception:  # a bug: without further steps, prompts would wait forever
                logger.exception("a decision on the number of model servers failed")
            # Without replicas and prompts there is nothing to decide.
            is_idle = not (self._active() or self._pool.prompts or self._lacks_spare())
            await done_within(self._wake.wait(), None if is_idle else INTERVAL_SECONDS)

    def _active(self) -> list[Replica]:
        """Return the replicas that take prompts, or will do so when they have started."""
        return [
            one
            for one in self._pool.replicas
            if not (one.spare or one.draining or one.state == "FAILED")
        ]

    def _step(self) -> None:
        now = asyncio.get_running_loop().time()
        active = self._active()
        self._limit = max([self._limit, *(replica.limit for replica in active)])
        if self._added is not None and self._added.state == "READY":
            self._failed_in_a_row, self._added = 0, None
        load = Load(self._pool.prompts, len(active), self._limit, self._source.tasks_wait)
        wanted = self._scaling.wanted = self._policy.decide(now, load)
        if wanted > len(active):
            self._grow(wanted - len(active), now)
        elif wanted < len(active):
            self._shrink(active, len(active) - wanted)
        if self._lacks_spare() and not load.tasks_wait:
            self._add(now, spare=True)

    def _lacks_spare(self) -> bool:
        spares = sum(one.spare and one.state != "FAILED" for one in self._pool.replicas)
        return spares < self._spares

    def _grow(self, number: int, now: float) -> None:
        for draining in self._pool.replicas:
            if number and draining.draining and draining.state == "READY":
                logger.info("model server %d is needed again", draining.index)
                draining.draining = False
                self._pool.wake()
                number -= 1
        while number and self._add(now):
            self._scaling.up += 1
            number -= 1

    def _add(self, now: float, *, spare: bool = False) -> bool:
        """Add a replica; return False if none can be added now."""
        if now < self._not_before:
            return False
        replica = self._source.another(self._pool.on_room)
        self._note_blocked(replica is None)
        if replica is None:
            return False
        replica.spare = spare
        purpose = "as a spare" if spare else "for the load"
        logger.info("model server %d is added %s", replica.index, purpose)
        self._added = replica
        self._pool.add(replica)
        return True

    def _note_blocked(self, blocked: bool) -> None:
        if blocked and not self._is_blocked:
            logger.info("another model server waits until its GPUs are free")
        self._is_blocked = blocked

    def _shrink(self, active: list[Replica], number: int) -> None:
        """Drain the replicas that have not started, then those with the fewest prompts."""
        active.sort(key=lambda one: (one.state == "READY", one.in_flight, -one.index))
        for replica in active[:number]:
            logger.info("model server %d is not needed and is drained", replica.index)
            replica.draining = True
            self._scaling.down += 1
            self._run_in_background(self._drain(replica))

    async def _drain(self, replica: Replica) -> None:
        if await self._pool.drain(replica):
            self._source.release(replica)
            self._wake.set()
        else:
            self._scaling.down -= 1

    def _on_given_up(self, replica: Replica) -> None:
        """Remove a replica that cannot start, and wait before another one is added."""
        self._scaling.failed += 1
        pause = min(PAUSE_SECONDS * 2**self._failed_in_a_row, MAX_PAUSE_SECONDS)
        self._failed_in_a_row += 1
        self._not_before = asyncio.get_running_loop().time() + pause
        self._run_in_background(self._remove(replica))

    async def _remove(self, replica: Replica) -> None:
        await self._pool.remove(replica)
        self._source.release(replica)
        self._wake.set()
