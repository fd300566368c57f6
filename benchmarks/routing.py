"""Prefix-aware routing, simulated: cached beginnings and balance against other ways to route.

A hundred replicas get a million prompts. Four of five prompts have one of 5,000 shared beginnings,
whose popularity follows Zipf's law, and some replicas lose their caches on the way. A cached
beginning makes a prompt five times cheaper. Run as `python -m benchmarks.routing [PROMPTS]`.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from rhapsody.inference.replicas.prefixes import PrefixRouter

REPLICAS = 100
PREFIXES = 5000
CACHED_PREFIXES = 200
"""Beginnings that the cache of one replica holds."""
SHARED = 0.8
COST, CACHED_COST = 5.0, 1.0
LOAD = 0.8
"""Prompts arrive at this part of the rate that the replicas could do without caches."""
DEATHS = 20
RING_POINTS = 64
SLACK = 8

Choose = Callable[[int, dict[int, int]], int]


class Outcome(NamedTuple):
    """What a way to route has reached."""

    cached: float
    """The part of prompts whose beginning was cached."""
    time: float
    """The mean time of a prompt, in units of the simulation."""
    balance: float
    """The work of the busiest replica, as a multiple of the mean."""
    cost: float
    """Seconds for one choice."""


class Simulation:
    """Replicas with one queue each, and caches of beginnings."""

    def __init__(self, prompts: int, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._prompts = prompts
        weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(PREFIXES)))
        self._weights = weights

    def _prefix(self, number: int) -> int:
        if self._random.random() < SHARED:
            return bisect.bisect(self._weights, self._random.random() * self._weights[-1])
        return PREFIXES + number  # of its own

    def run(self, choose: Choose, forget: Callable[[int], None]) -> Outcome:
        """Route all prompts.

        Args:
            choose: Returns the replica for a beginning, given the load of each replica.
            forget: Called with a replica that loses its cache.
        """
        caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(REPLICAS)]
        free_at = [0.0] * REPLICAS
        loads = dict.fromkeys(range(REPLICAS), 0)
        ends: list[tuple[float, int]] = []
        now = waited = spent = 0.0
        hits = 0
        work = [0.0] * REPLICAS
        dies_at = max(self._prompts // (DEATHS + 1), 1)
        for number in range(self._prompts):
            now += self._random.expovariate(REPLICAS * LOAD / COST)
            while ends and ends[0][0] <= now:
                loads[heapq.heappop(ends)[1]] -= 1
            if number % dies_at == dies_at - 1:
                dead = self._random.randrange(REPLICAS)
                caches[dead].clear()
                forget(dead)
            prefix = self._prefix(number)
            begin = time.thread_time()
            chosen = choose(prefix, loads)
            spent += time.thread_time() - begin
            cache = caches[chosen]
            cached = prefix in cache
            hits += cached
            cache[prefix] = None
            cache.move_to_end(prefix)
            if len(cache) > CACHED_PREFIXES:
                cache.popitem(last=False)
            loads[chosen] += 1
            cost = CACHED_COST if cached else COST
            work[chosen] += cost
            free_at[chosen] = max(free_at[chosen], now) + cost
            heapq.heappush(ends, (free_at[chosen], chosen))
            waited += free_at[chosen] - now
        number = self._prompts
        balance = max(work) * REPLICAS / sum(work)
        return Outcome(hits / number, waited / number, balance, spent / number)


def strategies(seed: int = 11) -> dict[str, tuple[Choose, Callable[[int], None]]]:
    """Return the ways to route, with the function that each calls for a lost cache."""
    chance = random.Random(seed)
    ring = sorted((chance.random(), r) for r in range(REPLICAS) for _ in range(RING_POINTS))
    places = [place for place, _ in ring]
    router: PrefixRouter[int] = PrefixRouter(SLACK)

    def hashed(prefix: int, loads: dict[int, int]) -> int:
        place = random.Random(prefix).random()
        return ring[bisect.bisect(places, place) % len(ring)][1]

    return {
        "prefix-aware": (lambda prefix, loads: router.choose((prefix,), loads), router.forget),
        "least loaded": (lambda prefix, loads: min(loads, key=loads.__getitem__), lambda _: None),
        "consistent hashing": (hashed, lambda _: None),
        "random": (lambda prefix, loads: chance.randrange(REPLICAS), lambda _: None),
    }


def main(prompts: int) -> None:
    """Print a table with a row for each way to route."""
    print("| Routing | Cached beginnings | Mean time of a prompt | Busiest replica | One choice |")
    print("|---|---|---|---|---|")
    for name, (choose, forget) in strategies().items():
        outcome = Simulation(prompts).run(choose, forget)
        print(
            f"| {name} | {outcome.cached:.0%} | {outcome.time:.1f} | {outcome.balance:.2f} x mean "
            f"| {1e6 * outcome.cost:.1f} us |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
