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

    def run(self, choose: Choose, forget: Callable[[int], None]) -> tuple[float, float, float]:
        """Return the part of cached beginnings, the mean time of a prompt, and of a choice."""
        caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(REPLICAS)]
        free_at = [0.0] * REPLICAS
        loads = dict.fromkeys(range(REPLICAS), 0)
        ends: list[tuple[float, int]] = []
        now = waited = spent = 0.0
        hits = 0
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
            free_at[chosen] = max(free_at[chosen], now) + (CACHED_COST if cached else COST)
            heapq.heappush(ends, (free_at[chosen], chosen))
            waited += free_at[chosen] - now
        return hits / self._prompts, waited / self._prompts, spent / self._prompts


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
    print("| Routing | Cached beginnings | Mean time of a prompt | Microseconds a choice |")
    print("|---|---|---|---|")
    for name, (choose, forget) in strategies().items():
        cached, waited, spent = Simulation(prompts).run(choose, forget)
        print(f"| {name} | {cached:.0%} | {waited:.1f} | {1e6 * spent:.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
