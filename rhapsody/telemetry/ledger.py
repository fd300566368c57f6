"""The ledger: counts and durations of tasks, kept from their events.

It is the one place where tasks are counted; summaries, checkpoints and OpenTelemetry's counters
all read it. Memory is bounded: finished tasks leave only numbers, and the tasks that are still
open are limited to `max_open`, beyond which the oldest is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rhapsody.backends.history import percentile
from rhapsody.telemetry.events import (
    BaseEvent,
    ResourceUpdate,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskQueued,
    TaskStarted,
    TaskSubmitted,
)

__all__ = ["GroupStats", "TaskLedger", "TaskRecord"]

RECENT_DURATIONS = 10_000
"""Percentiles are of this many latest durations in each group."""

_OUTCOMES: dict[type[BaseEvent], str] = {
    TaskCompleted: "completed",
    TaskFailed: "failed",
    TaskCanceled: "canceled",
}
_OPENING = frozenset({TaskCreated, TaskQueued, TaskSubmitted, TaskStarted, *_OUTCOMES})


@dataclass
class TaskRecord:
    """What is known of one task until it ends. Times are in seconds since the epoch."""

    task_id: str
    backend: str
    parent: Any
    first_seen: float
    task_type: str = ""
    executable: str = ""
    submitted_at: float | None = None
    started_at: float | None = None
    outcome: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def begun_at(self) -> float:
        """When it began to run, or else was submitted, or else was first seen."""
        return self.started_at or self.submitted_at or self.first_seen


@dataclass
class GroupStats:
    """Numbers of the tasks of one backend and task type. Durations are in seconds."""

    submitted: int = 0
    started: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    durations: int = 0
    total_seconds: float = 0.0
    min_seconds: float = float("inf")
    max_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_DURATIONS))

    def add_duration(self, seconds: float) -> None:
        """Take in how long a task ran."""
        self.durations += 1
        self.total_seconds += seconds
        self.min_seconds = min(self.min_seconds, seconds)
        self.max_seconds = max(self.max_seconds, seconds)
        self.recent.append(seconds)


class TaskLedger:
    """Counts tasks by backend and type, from their events.

    Args:
        max_open: How many unfinished tasks are remembered at most.
    """

    def __init__(self, max_open: int) -> None:
        self.groups: dict[tuple[str, str], GroupStats] = {}
        self.resources: dict[str, ResourceUpdate] = {}
        self._max_open = max_open
        self._open: dict[str, TaskRecord] = {}

    def observe(self, event: BaseEvent, parent: Any) -> TaskRecord | None:
        """Take in an event.

        Args:
            event: The event.
            parent: The span it was emitted under; the first event of a task decides.

        Returns:
            The task it is about; its `outcome` is set if the event ended it. None for events
            about no task, or about one that is not known.
        """
        if isinstance(event, ResourceUpdate):
            self.resources[f"{event.backend}/{event.node_id}"] = event
            return None
        if event.task_id is None:
            return None
        record = self._open.get(event.task_id)
        if record is None:
            if type(event) not in _OPENING:
                return None
            record = self._remember(event, event.task_id, parent)
        record.task_type = record.task_type or str(event.attributes.get("task_type") or "")
        record.executable = record.executable or str(event.attributes.get("executable") or "")
        self._count(event, record)
        return record

    def close_open(self) -> Iterator[TaskRecord]:
        """Forget the tasks that were submitted and never ended, and yield them."""
        while self._open:
            record = self._forget(next(iter(self._open)))
            if record.submitted_at is not None or record.started_at is not None:
                yield record

    def counts(self, backend: str | None = None) -> dict[str, int]:
        """Return the number of tasks submitted, running, completed, failed and canceled."""
        states = ("submitted", "running", "completed", "failed", "canceled")
        groups = self._groups_of(backend)
        return {state: sum(getattr(group, state) for group in groups) for state in states}

    def durations(self, backend: str | None = None) -> dict[str, float]:
        """Return figures of how long tasks ran, those that completed or failed, in seconds."""
        groups = [group for group in self._groups_of(backend) if group.durations]
        if not groups:
            return {}
        count = sum(group.durations for group in groups)
        total = sum(group.total_seconds for group in groups)
        figures = {
            "count": count,
            "total_seconds": total,
            "mean_seconds": total / count,
            "min_seconds": min(group.min_seconds for group in groups),
            "max_seconds": max(group.max_seconds for group in groups),
        }
        recent = sorted(_chain(group.recent for group in groups))
        for percent in (50, 95, 99):
            figures[f"p{percent}_seconds"] = percentile(recent, percent)
        return figures

    def backends(self) -> list[str]:
        """Return the names of the backends that had tasks."""
        return sorted({backend for backend, _ in self.groups})

    def metrics(self) -> dict[str, Any]:
        """Return the totals under the names that OpenTelemetry's instruments have."""
        groups = self._groups_of(None)
        metrics: dict[str, Any] = {
            f"tasks_{name}": sum(getattr(group, name) for group in groups)
            for name in ("submitted", "started", "completed", "failed", "canceled", "running")
        }
        metrics["task_duration_seconds_count"] = sum(group.durations for group in groups)
        metrics["task_duration_seconds_sum"] = sum(group.total_seconds for group in groups)
        return metrics

    def _groups_of(self, backend: str | None) -> list[GroupStats]:
        groups = list(self.groups.items())
        return [group for (name, _), group in groups if backend is None or name == backend]

    def _group(self, record: TaskRecord) -> GroupStats:
        key = (record.backend, record.task_type)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = GroupStats()
        return group

    def _remember(self, event: BaseEvent, task_id: str, parent: Any) -> TaskRecord:
        if len(self._open) >= self._max_open:
            self._forget(next(iter(self._open)))
        record = TaskRecord(task_id, event.backend, parent, event.event_time)
        self._open[task_id] = record
        return record

    def _forget(self, task_id: str) -> TaskRecord:
        record = self._open.pop(task_id)
        if record.started_at is not None:
            self._group(record).running -= 1
        return record

    def _count(self, event: BaseEvent, record: TaskRecord) -> None:
        if isinstance(event, TaskSubmitted):
            # radical.asyncflow 0.6 names the task's own backend here, and the engine's default
            # backend when the task is created, starts and ends.
            record.backend = event.backend
            record.submitted_at = event.event_time
            self._group(record).submitted += 1
        elif isinstance(event, TaskStarted):
            if record.started_at is None:
                record.started_at = event.event_time
                group = self._group(record)
                group.started += 1
                group.running += 1
        elif isinstance(event, (TaskCompleted, TaskFailed, TaskCanceled)):
            self._forget(record.task_id)
            record.outcome = _OUTCOMES[type(event)]
            group = self._group(record)
            setattr(group, record.outcome, getattr(group, record.outcome) + 1)
            if not isinstance(event, TaskCanceled):
                group.add_duration(event.duration_seconds)


def _chain(parts: Iterable[Iterable[float]]) -> Iterator[float]:
    for part in parts:
        yield from part
