"""Model servers in the statistics of backends: replicas, how many are wanted, and HTTP clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["clients_of", "replicas_of", "scaling_note", "scaling_of", "servers_table"]

REPLICA = {"index": int, "state": str, "in_flight": int, "restarts": (int, type(None))}
SCALING = dict.fromkeys(("wanted", "smallest", "largest", "up", "down", "failed"), int)
CLIENT = {
    "name": str,
    **dict.fromkeys(("prompts", "refused", "prompt_tokens", "completion_tokens"), int),
}
"""The fields that are shown. Backends of other packages may give the same names other meanings."""

Fields = Mapping[str, Any]


def replicas_of(statistics: Fields) -> list[Fields]:
    """Return the replicas of a backend."""
    return _entries(statistics.get("replicas"), REPLICA)


def clients_of(statistics: Fields) -> list[Fields]:
    """Return the usage of the clients of a backend's HTTP server."""
    return _entries(statistics.get("clients"), CLIENT)


def scaling_of(statistics: Fields) -> Fields | None:
    """Return how the number of replicas follows the load; None if it is fixed or not known."""
    return next(iter(_entries([statistics.get("scaling")], SCALING)), None)


def scaling_note(statistics: Fields) -> str:
    """Return how the number of replicas followed the load; "" if it is fixed or not known."""
    scaling = scaling_of(statistics)
    if scaling is None:
        return ""
    replicas = replicas_of(statistics)
    in_flight = sum(replica["in_flight"] for replica in replicas)
    return (
        f"replicas: {len(replicas)} now, {scaling['wanted']} wanted, {scaling['smallest']} to "
        f"{scaling['largest']} allowed; {scaling['up']:,} added, {scaling['down']:,} removed, "
        f"{scaling['failed']:,} failed; "
        f"{max(statistics.get('pending_prompts', 0) - in_flight, 0):,} prompts wait"
    )


def servers_table(backend: str, statistics: Fields) -> list[dict[str, Any]]:
    """Return the rows of a backend's model servers; of an endpoint only the host is known."""
    rows = []
    for replica in replicas_of(statistics):
        row = {"node": None, "restarts": None, **replica, "backend": backend}
        if "node" not in replica:
            row["node"] = urlsplit(replica.get("address") or "").netloc
        rows.append(row)
    return rows


def _entries(given: Any, shown: Mapping[str, Any]) -> list[Fields]:
    """Return the entries of a list that are mappings with all fields that are shown."""
    if not isinstance(given, list):
        return []
    return [
        entry
        for entry in given
        if isinstance(entry, Mapping)
        and all(isinstance(entry.get(name), kind) for name, kind in shown.items())
    ]
