"""Counters: counts and durations of tasks, computed from their events.

Summaries, the checkpoint file and OpenTelemetry's instruments all read these counters. Memory is
bounded: a finished task leaves only numbers, and at most `max_open` unfinished tasks are tracked;
beyond that, the oldest one is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rhapsody.backends.core.history import percentile
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

__all__ = ["GroupCounters", "TaskCounters", "TrackedTask"]

RECENT_DURATIONS = 10_000
"""The number of latest durations in each group from which percentiles are computed."""

_OUTCOMES: dict[type[BaseEvent], str] = {
    TaskCompleted: "completed",
    TaskFailed: "failed",
    TaskCanceled: "canceled",
}
_OPENING = frozenset({TaskCreated, TaskQueued, TaskSubmitted, TaskStarted, *_OUTCOMES})


@dataclass
class TrackedTask:
    """An unfinished task. Times are in seconds since the epoch."""

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
        """When the task started, or else was submitted, or else was first seen."""
        return self.started_at or self.submitted_at or self.first_seen


@dataclass
class GroupCounters:
    """Counts and durations of the tasks of one backend and type. Durations are in seconds."""

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
        """Add the duration of a task."""
        self.durations += 1
        self.total_seconds += seconds
        self.min_seconds = min(self.min_seconds, seconds)
        self.max_seconds = max(self.max_seconds, seconds)
        self.recent.append(seconds)


class TaskCounters:
    """Counts tasks by backend and type, from their events.

    Args:
        max_open: The maximum number of unfinished tasks to track.
    """

    def __init__(self, max_open: int) -> None:
        self.groups: dict[tuple[str, str], GroupCounters] = {}
        self.resources: dict[str, ResourceUpdate] = {}
        self._max_open = max_open
        self._open: dict[str, TrackedTask] = {}

    def observe(self, event: BaseEvent, parent: Any) -> TrackedTask | None:
        """Count an event.

        Args:
            event: The event.
            parent: The span in which it was emitted; the first event of a task decides.

        Returns:
            The event's task, with its `outcome` set if the event ended it. None if the event
            belongs to no task, or to one that is not tracked.
        """
        if isinstance(event, ResourceUpdate):
            gpu = "" if event.gpu_id is None else f"/gpu{event.gpu_id}"
            self.resources[f"{event.backend}/{event.node_id}{gpu}"] = event
            return None
        if event.task_id is None:
            return None
        record = self._open.get(event.task_id)
        if record is None:
            if type(event) not in _OPENING:
                return None
            record = self._remember(event, event.task_id, parent)
        record.task_type = record.task_type or str(event.attributes.get("task_type") or "")
        # A task's command may be known only when its function has returned it.
        record.executable = str(event.attributes.get("executable") or record.executable)
        self._count(event, record)
        return record

    def take_unfinished(self) -> Iterator[TrackedTask]:
        """Remove all unfinished tasks, and yield those that were submitted."""
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
        """Return statistics of how long completed and failed tasks ran, in seconds."""
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
        """Return the names of all backends with tasks."""
        return sorted({backend for backend, _ in self.groups})

    def metrics(self) -> dict[str, Any]:
        """Return the totals under the names of OpenTelemetry's instruments."""
        groups = self._groups_of(None)
        metrics: dict[str, Any] = {
            f"tasks_{name}": sum(getattr(group, name) for group in groups)
            for name in ("submitted", "started", "completed", "failed", "canceled", "running")
        }
        metrics["task_duration_seconds_count"] = sum(group.durations for group in groups)
        metrics["task_duration_seconds_sum"] = sum(group.total_seconds for group in groups)
        return metrics

    def _groups_of(self, backend: str | None) -> list[GroupCounters]:
        groups = list(self.groups.items())
        return [group for (name, _), group in groups if backend is None or name == backend]

    def _group(self, record: TrackedTask) -> GroupCounters:
        key = (record.backend, record.task_type)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = GroupCounters()
        return group

    def _remember(self, event: BaseEvent, task_id: str, parent: Any) -> TrackedTask:
        if len(self._open) >= self._max_open:
            self._forget(next(iter(self._open)))
        record = TrackedTask(task_id, event.backend, parent, event.event_time)
        self._open[task_id] = record
        return record

    def _forget(self, task_id: str) -> TrackedTask:
        record = self._open.pop(task_id)
        if record.started_at is not None:
            self._group(record).running -= 1
        return record

    def _count(self, event: BaseEvent, record: TrackedTask) -> None:
        if isinstance(event, TaskSubmitted):
            # radical.asyncflow 0.6 names the task's own backend here, and the engine's default
            # backend when the task is created, starts and ends.
            record.backend = event.backend
            if record.submitted_at is None:  # later ones are further attempts
                self._group(record).submitted += 1
            record.submitted_at = event.event_time
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
