"""The pool: which replica gets a prompt, and what happens when one dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from rhapsody.api.errors import ReplicaError
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replica import Replica

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A server that ran this long has all its restarts again."""


class Pool:
    """Starts replicas, keeps them alive, and spreads batches over them by load.

    Args:
        replicas: The servers, not yet started.
        max_retries: How often a prompt whose server died is sent again.
        max_restarts: How often in a row each server is restarted.
        startup_timeout: Longest time for a server to become ready, in seconds.
        health_interval: Seconds between health checks.
        put_back: Takes prompts that are to be sent again.
        on_failure: Called with the reason when no server is left and none will come back.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        max_retries: int,
        max_restarts: int,
        startup_timeout: float,
        health_interval: float,
        put_back: Callable[[Iterable[PromptRequest]], None],
        on_failure: Callable[[ReplicaError], None],
    ) -> None:
        self.replicas = list(replicas)
        self.failure: ReplicaError | None = None
        """Why no server will ever take a prompt again, once that is so."""
        self._max_retries = max_retries
        self._max_restarts = max_restarts
        self._startup_timeout = startup_timeout
        self._health_interval = health_interval
        self._put_back = put_back
        self._on_failure = on_failure
        self._supervisors: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all servers at once and wait until all are ready.

        Raises:
            ReplicaError: One exited or was too slow; none is left running.
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
            await self._end_all()
            raise
        self._supervisors = [
            asyncio.get_running_loop().create_task(self._supervise(replica))
            for replica in self.replicas
        ]

    async def stop(self) -> None:
        """End all servers."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        await self._end_all()

    async def _end_all(self) -> None:
        await asyncio.gather(*(replica.end("STOPPED") for replica in self.replicas))

    def kill(self) -> None:
        """End all servers at once, at the exit of this process."""
        for replica in self.replicas:
            replica.kill()

    async def _supervise(self, replica: Replica) -> None:
        try:
            await self._keep_alive(replica)
        except Exception as error:  # a bug: prompts must not wait for a server nobody restarts
            logger.exception("model server %d is no longer watched", replica.index)
            await replica.end()
            self._give_up(
                replica, ReplicaError(f"watching model server {replica.index}: {error!r}")
            )

    async def _keep_alive(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            since = loop.time()
            reason = await replica.until_dead(self._health_interval)
            logger.error("model server %d %s", replica.index, reason)
            error = ReplicaError(f"model server {replica.index} {reason}", replica.log_tail())
            await replica.end()
            if loop.time() - since > STABLE_SECONDS:
                in_a_row = 0
            while in_a_row < self._max_restarts:
                in_a_row += 1
                again = await self._restart(replica, in_a_row)
                if again is None:
                    break
                error = again
            else:
                self._give_up(replica, error)
                return

    async def _restart(self, replica: Replica, in_a_row: int) -> ReplicaError | None:
        """Bring a server back after a pause. Returns why it did not come, or None."""
        replica.restarts += 1
        await asyncio.sleep(min(BACKOFF_SECONDS * 2**in_a_row, LONGEST_BACKOFF_SECONDS))
        try:
            await replica.start(self._startup_timeout)
        except ReplicaError as error:
            logger.error("%s", error)
            return error
        return None

    def _give_up(self, replica: Replica, error: ReplicaError) -> None:
        replica.state = "FAILED"
        if all(other.state == "FAILED" for other in self.replicas):
            self.failure = ReplicaError(
                f"no model server is left: {error.reason}, and max_restarts="
                f"{self._max_restarts} is used up",
                error.log_tail,
            )
            self._on_failure(self.failure)

    @property
    def ready(self) -> list[Replica]:
        """The servers that take prompts now."""
        return [replica for replica in self.replicas if replica.state == "READY"]

    def capacity(self) -> int | None:
        """How many prompts could start at once; None where no server is ready."""
        ready = self.ready
        return sum(replica.room for replica in ready) if ready else None

    def least_loaded(self) -> Replica | None:
        """The ready server with the fewest prompts in flight."""
        return min(self.ready, key=lambda replica: replica.in_flight, default=None)

    def dispatch(self, batch: Sequence[PromptRequest]) -> Coroutine[Any, Any, None]:
        """Send a batch, spread so that the servers' loads become even.

        Prompts whose server died go back to be sent again, or fail where that was too often.

        Args:
            batch: Prompts; at least one server is ready.

        Returns:
            What ends when all of the batch has ended. The servers' room is taken at once.
        """
        shares = self._shares(batch)
        for replica, share in shares:
            replica.take(share)
        return self._send_all(shares)

    async def _send_all(self, shares: list[tuple[Replica, list[PromptRequest]]]) -> None:
        await asyncio.gather(*(self._send(replica, share) for replica, share in shares))

    def _shares(self, batch: Sequence[PromptRequest]) -> list[tuple[Replica, list[PromptRequest]]]:
        ready = sorted(self.ready, key=lambda replica: replica.in_flight)
        # Fill up the idlest to the level of the next one, then both, and so on.
        loads = [replica.in_flight for replica in ready]
        level, used = loads[0], 1
        left = len(batch)
        while used < len(ready) and left >= (loads[used] - level) * used:
            left -= (loads[used] - level) * used
            level = loads[used]
            used += 1
        each, extra = divmod(left, used)
        shares, begin = [], 0
        for position in range(used):
            size = level - loads[position] + each + (position < extra)
            if size:
                shares.append((ready[position], list(batch[begin : begin + size])))
                begin += size
        return shares

    async def _send(self, replica: Replica, share: list[PromptRequest]) -> None:
        lost = await replica.answer(share)
        again = []
        for request in lost:
            request.attempts += 1
            request.replica = None
            if self.failure is None and request.can_retry and request.attempts <= self._max_retries:
                again.append(request)
            else:
                request.fail(self._why_lost(replica, request))
        if again:
            self._put_back(again)

    def _why_lost(self, replica: Replica, request: PromptRequest) -> ReplicaError:
        if self.failure is not None:
            return self.failure
        how = f"{request.attempts} times" if request.can_retry else "in the middle of the stream"
        return ReplicaError(
            f"the connection to model server {replica.index} was lost {how} (max_retries="
            f"{self._max_retries})",
            replica.log_tail(),
        )
