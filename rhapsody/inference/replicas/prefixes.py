"""Prefix-aware routing: a prompt goes to the replica that has its beginning in its cache.

Model servers keep the computed beginnings of prompts. A second prompt with the same beginning, such
as a long system prompt or a shared document, starts much sooner on the same server.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from rhapsody.inference.prefix_keys import Keys

__all__ = ["PrefixRouter"]

R = TypeVar("R", bound=Hashable)

MAX_PREFIXES = 100_000
"""Beginnings that are remembered; those that were not used for the longest time are forgotten."""
MAX_OWNERS = 8
"""Replicas that are remembered for one beginning."""


class PrefixRouter(Generic[R]):
    """Remembers which replicas have which beginnings, and chooses replicas by that and their loads.

    Args:
        slack: How much more load than the least loaded replica one may have, and still get a
            prompt for its beginning.
        max_prefixes: Maximum number of beginnings that are remembered.
    """

    def __init__(self, slack: int, max_prefixes: int = MAX_PREFIXES) -> None:
        self.slack = slack
        self.hits = 0
        self.misses = 0
        """Prompts whose beginning no replica has, or only replicas with too much load."""
        self._max_prefixes = max_prefixes
        self._owners: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._names: dict[R, int] = {}
        """The name of each replica. It gets a new one when its cache is lost."""
        self._replicas: dict[int, R] = {}
        self._last_name = 0

    def __len__(self) -> int:
        return len(self._owners)

    def choose(self, keys: Keys, loads: Mapping[R, int]) -> R:
        """Return the replica for a prompt, and remember that it has the prompt's beginnings.

        Args:
            keys: The hashes of the prompt's beginnings; at least one.
            loads: The load of each replica that may be chosen; at least one.
        """
        limit = min(loads.values()) + self.slack
        chosen = self._owner(keys, loads, limit)
        if chosen is None:
            self.misses += 1
            chosen = min(loads, key=loads.__getitem__)
        else:
            self.hits += 1
        self._remember(keys, chosen)
        return chosen

    def _owner(self, keys: Keys, loads: Mapping[R, int], limit: int) -> R | None:
        """Return the replica with the longest beginning, if its load is within the limit."""
        for key in reversed(keys):
            best, least = None, limit + 1
            for name in self._owners.get(key, ()):
                replica = self._replicas.get(name)
                if replica is not None and loads.get(replica, least) < least:
                    best, least = replica, loads[replica]
            if best is not None:
                return best
        return None

    def _remember(self, keys: Keys, replica: R) -> None:
        name = self._names.get(replica)
        if name is None:
            self._last_name += 1
            name = self._names[replica] = self._last_name
            self._replicas[name] = replica
        for key in keys:
            owners = self._owners.get(key, ())
            if name not in owners:
                alive = [one for one in owners if one in self._replicas]
                self._owners[key] = (*alive[-MAX_OWNERS + 1 :], name)
            self._owners.move_to_end(key)
        while len(self._owners) > self._max_prefixes:
            self._owners.popitem(last=False)

    def forget(self, replica: R) -> None:
        """Forget what a replica has: its server has ended."""
        name = self._names.pop(replica, None)
        if name is not None:
            del self._replicas[name]
