"""The starts of workers: on which nodes, and what follows if they fail."""

from __future__ import annotations

import heapq
import signal
from collections.abc import Mapping, Sequence

from rhapsody.allocation import Node
from rhapsody.backends.workers.worker_state import WorkerState

__all__ = ["FailedStarts", "spread"]

MAX_FAILURES = 3
"""After this many workers in a row ended by themselves before they were ready, none will start."""

MAX_PAUSES = 20
"""The same for workers that were killed, with a pause after each; together a good minute."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
"""The pause after a worker was killed while it started; it doubles with each."""

CRASHES = frozenset(
    -number
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
)
"""Exit codes of processes that a signal ended through a fault of their own."""

REASON_CHARACTERS = 500
"""Longest line of a worker's standard error that is quoted."""


class FailedStarts:
    """The workers that ended before they were ready, since the last one that became ready.

    A worker that a signal killed may have been in the way of somebody, or of memory: the next one
    may start. A worker that ended by itself, as with an import error, shows that none can start.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pauses = 0
        self._last: WorkerState | None = None

    def clear(self) -> None:
        """Note that a worker is ready."""
        self._failures = self._pauses = 0

    def add(self, worker: WorkerState) -> float:
        """Note that a worker ended before it was ready; return for how long to start no other."""
        self._last = worker
        code = worker.exit_code
        if code is None or code >= 0 or code in CRASHES:
            self._failures += 1
            return 0.0
        self._pauses += 1
        pause: float = FIRST_PAUSE_SECONDS * 2 ** (self._pauses - 1)
        return min(pause, LONGEST_PAUSE_SECONDS)

    @property
    def are_final(self) -> bool:
        """Whether no worker is expected to start any more."""
        return self._failures >= MAX_FAILURES or self._pauses >= MAX_PAUSES

    @property
    def reason(self) -> str:
        """Why no worker starts."""
        count = self._failures if self._failures >= MAX_FAILURES else self._pauses
        last = self._last
        if last is None:
            return "no worker has failed"
        written = _quotation(last.start_error)
        return (
            f"{count} workers in a row ended before they were ready; the last one "
            f"{last.exit_description}"
            f"{f': {written}' if written else '; see what they wrote to standard error'}"
        )


def _quotation(text: str) -> str:
    """Return the line of a worker's standard error that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    says_most = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return says_most[:REASON_CHARACTERS]


def spread(nodes: Sequence[Node], load: Mapping[Node, int], count: int) -> list[Node]:
    """Place new workers, each on the node with the fewest workers per CPU.

    Args:
        nodes: Nodes to place workers on; the first of equally loaded nodes is chosen.
        load: Number of workers that each node has.
        count: Number of new workers.
    """

    def entry(index: int, workers: int) -> tuple[float, int, int]:
        node = nodes[index]
        return (workers + 1) / max(1, node.cpus - node.is_head), index, workers

    heap = [entry(index, load.get(node, 0)) for index, node in enumerate(nodes)]
    heapq.heapify(heap)
    placed = []
    for _ in range(count):
        _, index, workers = heap[0]
        heapq.heapreplace(heap, entry(index, workers + 1))
        placed.append(nodes[index])
    return placed
