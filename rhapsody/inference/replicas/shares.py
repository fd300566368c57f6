"""Shares of a batch: how many of its prompts each server gets, so that their loads become even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["even_shares"]

Server = TypeVar("Server")
Prompt = TypeVar("Prompt")


def even_shares(
    batch: Sequence[Prompt], loads: Mapping[Server, int]
) -> list[tuple[Server, list[Prompt]]]:
    """Divide a batch among servers. Servers that get nothing are left out.

    Args:
        batch: The prompts.
        loads: The number of prompts that each server has, of at least one server.
    """
    servers = sorted(loads, key=loads.__getitem__)
    # Raise the lowest load to the level of the next one, then both to the third, and so on.
    ascending = [loads[server] for server in servers]
    level, used = ascending[0], 1
    left = len(batch)
    while used < len(servers) and left >= (ascending[used] - level) * used:
        left -= (ascending[used] - level) * used
        level = ascending[used]
        used += 1
    each, extra = divmod(left, used)
    shares, begin = [], 0
    for position in range(used):
        size = level - ascending[position] + each + (position < extra)
        if size:
            shares.append((servers[position], list(batch[begin : begin + size])))
            begin += size
    return shares
