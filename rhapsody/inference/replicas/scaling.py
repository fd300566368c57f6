"""The scaling policy: how many replicas a load needs, without flapping."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Load", "Scaling", "ScalingPolicy"]

HEADROOM = 0.8
"""The part of its limit up to which a replica is loaded. The rest is for prompts that arrive while
another replica starts, which takes a minute on a GPU."""


@dataclass(frozen=True)
class Load:
    """The load of a model at one time.

    Attributes:
        prompts: Prompts that wait or are worked on.
        replicas: Replicas that take prompts, or will do so when they have started.
        limit: Prompts that one replica works on at a time; 0: not known yet.
        tasks_wait: Whether tasks wait for the GPUs that the replicas use.
    """

    prompts: int
    replicas: int
    limit: int
    tasks_wait: bool = False


class ScalingPolicy:
    """Decides how many replicas there should be. It has no clock, no tasks and no processes.

    A load needs as many replicas as work on its prompts at a time, each at `HEADROOM` of its limit.
    Replicas are added when more have been needed for `up_after` seconds, and at once if there is
    none. The number follows the most that were needed in the last `down_after` seconds downwards,
    so a short pause stops none. If tasks wait for GPUs, the last `up_after` seconds count.

    Args:
        smallest: Fewest replicas.
        largest: Most replicas.
        up_after: Seconds for which more replicas must have been needed.
        down_after: Seconds for which fewer replicas must have been needed.
    """

    def __init__(self, smallest: int, largest: int, up_after: float, down_after: float) -> None:
        self.smallest = smallest
        self.largest = largest
        self._up_after = up_after
        self._down_after = down_after
        self._short_since: float | None = None
        self._needed: deque[tuple[float, int]] = deque()
        """What was needed at past times, the most first: the maxima of a sliding window."""

    def decide(self, now: float, load: Load) -> int:
        """Return the number of replicas that there should be.

        Args:
            now: The time in seconds; it never goes back.
            load: The load at that time.
        """
        needed = self._needed_for(load)
        self._note(now, needed)
        if needed > load.replicas:
            if self._short_since is None:
                self._short_since = now
            if not load.replicas or now - self._short_since >= self._up_after:
                return needed
            return self._within_bounds(load.replicas)
        self._short_since = None
        since = now - self._up_after if load.tasks_wait else -math.inf
        most = next(number for at, number in self._needed if at > since or at == now)
        return self._within_bounds(min(load.replicas, most))

    def _needed_for(self, load: Load) -> int:
        full = HEADROOM * load.limit
        needed = math.ceil(load.prompts / full) if full else min(load.prompts, 1)
        return self._within_bounds(needed)

    def _within_bounds(self, replicas: int) -> int:
        return min(max(replicas, self.smallest), self.largest)

    def _note(self, now: float, needed: int) -> None:
        while self._needed and self._needed[-1][1] <= needed:
            self._needed.pop()
        self._needed.append((now, needed))
        while self._needed[0][0] < now - self._down_after:
            self._needed.popleft()


@dataclass
class Scaling:
    """The numbers of replicas of a pool that grows and shrinks.

    Attributes:
        smallest: Fewest replicas.
        largest: Most replicas.
        wanted: The present decision.
        up: Replicas that were added.
        down: Replicas that were drained and stopped.
        failed: Replicas that could not start, or could not start again.
    """

    smallest: int
    largest: int
    wanted: int = 0
    up: int = 0
    down: int = 0
    failed: int = 0
