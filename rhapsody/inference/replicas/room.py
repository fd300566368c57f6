"""The room of a pool's servers for prompts, and the slots that are kept free for urgent prompts.

A server that works on as many prompts as it can lets an urgent prompt wait until one of them ends,
which may take minutes. So while urgent prompts come, ordinary prompts never take all of its slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rhapsody.inference.replicas.replica import Replica

__all__ = ["Room"]

KEPT_PART = 16
"""One slot of so many is kept free for urgent prompts, so bulk work loses 6 % of its throughput."""
SMALLEST_LIMIT = 10
"""A server with fewer slots keeps none free, since a single one would be too large a part."""
KEPT_SECONDS = 60.0
"""For how long slots are kept free after an urgent prompt."""

FILL = 2
"""Ordinary prompts sent to a busy server, for each that it works on at a time. The others wait in
the queue for other servers; those beyond the limit keep a busy server busy."""
PORTION = 4
"""A busy server gets further prompts when this part of its limit has ended, so that the batches are
not small."""


class Room:
    """Counts how many prompts may be sent to servers.

    Args:
        fill: Prompts sent to a server without a delay, for each that it works on at a time.
        clock: Returns the time in seconds.
    """

    def __init__(self, fill: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._fill = fill
        self._clock = clock
        self._kept_until: float | None = None

    def note_urgent(self) -> None:
        """Keep slots free from now on, for `KEPT_SECONDS`."""
        self._kept_until = self._clock() + KEPT_SECONDS

    def for_urgent(self, replicas: Iterable[Replica]) -> int:
        """Return how many urgent prompts may be sent."""
        return sum(self._for_urgent(one) for one in replicas)

    def for_ordinary(self, replicas: Iterable[Replica]) -> int:
        """Return how many ordinary prompts may be sent."""
        if not self._keeps_slots:
            return self.for_urgent(replicas)
        return sum(min(self._for_urgent(one), _unkept(one)) for one in replicas)

    def beyond(self, replicas: Iterable[Replica]) -> int:
        """Return how many ordinary prompts may be sent to busy servers when they waited too long.

        Only ordinary prompts that are in flight count. So urgent prompts, and requests that do not
        pass through the queue, never hold them up for ever.
        """
        if self._keeps_slots:
            return sum(map(_unkept, replicas))
        left = [(one, max(FILL * one.limit - one.ordinary_in_flight, 0)) for one in replicas]
        return sum(prompts for one, prompts in left if prompts * PORTION >= one.limit)

    @property
    def _keeps_slots(self) -> bool:
        return self._kept_until is not None and self._clock() < self._kept_until

    def _for_urgent(self, replica: Replica) -> int:
        return max(self._fill * replica.limit - replica.in_flight, 0)


def _unkept(replica: Replica) -> int:
    """Return how many ordinary prompts fit beside the slots that are kept free."""
    limit = replica.limit
    kept = max(limit // KEPT_PART, 1) if limit >= SMALLEST_LIMIT else 0
    return max(limit - kept - replica.ordinary_in_flight, 0)
