"""Counts and latencies of one backend's tasks, in constant time and memory per task."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from rhapsody.backends.protocol import TaskStates

__all__ = ["BackendStatistics"]

SAMPLES = 10_000


class BackendStatistics:
    """Tasks by state, and the latencies of the last 10,000 that ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=SAMPLES)

    def submitted(self) -> None:
        """Count a new task."""
        self.counts[TaskStates.PENDING] += 1

    def started(self, before: str) -> None:
        """Move a task from the state before to RUNNING."""
        self.counts[before] -= 1
        self.counts[TaskStates.RUNNING] += 1

    def ended(self, before: str, state: str, seconds: float) -> None:
        """Move a task to its terminal state, `seconds` after it was submitted."""
        self.counts[before] -= 1
        self.counts[state] += 1
        self._latencies.append(seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return `tasks` by state and `latency_seconds`; percentiles by nearest rank."""
        latencies = sorted(self._latencies)
        summary: dict[str, float] = {"count": len(latencies)}
        if latencies:
            summary["mean"] = sum(latencies) / len(latencies)
            for percent in (50, 90, 99):
                summary[f"p{percent}"] = latencies[-(-len(latencies) * percent // 100) - 1]
            summary["max"] = latencies[-1]
        counts = {state: number for state, number in self.counts.items() if number}
        return {"tasks": counts, "latency_seconds": summary}
