"""Protocol of what the scheduler needs to start, end and reach workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.worker_state import WorkerState

__all__ = ["WorkerControl"]


class WorkerControl(Protocol):
    """Starts and ends workers and sends messages to them. No method blocks."""

    def new_number(self) -> int:
        """Return the number of a new worker."""

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        """Start workers."""

    def send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls, pairs of a task and a call id, to a worker."""

    def send(self, worker: WorkerState, *message: Any) -> None:
        """Send any other message to a worker."""

    def kill(self, worker: WorkerState) -> None:
        """Kill a worker."""

    def on_dropped(self, worker: WorkerState, segments: list[tuple[str, bool]]) -> None:
        """Note that a worker uses segments of large data no longer; see `DataStore.drop`."""

    def on_end(self, worker: WorkerState) -> None:
        """Note that a worker has ended, and its last message was handled."""

    def reap(self, worker: WorkerState) -> None:
        """Report the worker's exit to the scheduler, after its last message."""
