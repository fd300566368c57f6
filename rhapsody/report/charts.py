"""The data of the charts: the latest tasks of each backend in columns, and batches of prompts."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from rhapsody.backends.core.history import STATES, TaskRecord
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.runs import BackendRun

__all__ = ["ChartData"]

DIGITS = 6
"""Times are written to the microsecond."""
COLUMNS = ("uid", "name", "group", "lane", "state", "submitted", "began", "ended", "reason")
STATE_NUMBERS = {state: number for number, state in enumerate(STATES)}


class ChartData:
    """The data that the page's script draws, in columns.

    Args:
        origin: The time 0 of the page, by `time.monotonic`.
        seconds: The duration of the run.
    """

    def __init__(self, origin: float, seconds: float) -> None:
        self._origin = origin
        self._seconds = seconds
        self._backends: list[str] = []
        self._groups: list[dict[str, Any]] = []
        self._names: dict[str, int] = {}
        self._reasons: dict[str, int] = {}
        self._tasks: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        self.batches: list[dict[str, Any]] = []

    def as_dict(self) -> dict[str, Any]:
        """Return the data as a dict for JSON."""
        return {
            "seconds": self._seconds,
            "backends": self._backends,
            "groups": self._groups,
            "names": list(self._names),
            "reasons": list(self._reasons),
            "states": STATES,
            "tasks": self._tasks,
            "batches": self.batches,
        }

    def add(self, run: BackendRun, records: Sequence[TaskRecord]) -> None:
        """Add a backend's tasks and batches."""
        backend = len(self._backends)
        self._backends.append(run.name)
        by_place: dict[str, list[TaskRecord]] = {}
        for record in records:
            by_place.setdefault(record.place, []).append(record)
        for place in sorted(by_place, key=_natural):
            self._add_group(backend, place, by_place[place])
        batches = [b for b in run.history.batches() if b[0] >= self._origin]
        if batches:
            times, sizes = zip(*batches, strict=True)
            self.batches.append(
                {"backend": backend, "time": [self._time(t) for t in times], "size": sizes}
            )

    def _add_group(self, backend: int, place: str, records: Sequence[TaskRecord]) -> None:
        name = self._backends[backend]
        lanes = _Lanes()
        rows = [
            self._row(began, record, lanes)
            for began, record in sorted(((self._began(r), r) for r in records), key=_first)
        ]
        for column, values in zip(COLUMNS, zip(*rows, strict=True), strict=True):
            self._tasks[column] += values
        label = f"{name}, {place}" if place else name
        self._groups.append({"backend": backend, "label": label, "lanes": max(lanes.number, 1)})

    def _row(self, began: float, record: TaskRecord, lanes: _Lanes) -> tuple[Any, ...]:
        uid, name, _, state, submitted, _, ended_at, reason = record
        ended = None if ended_at is None else self._time(ended_at)
        lane = -1
        if state != TaskStates.PENDING:
            lane = lanes.take(began, self._seconds if ended is None else ended)
        return (
            uid,
            self._names.setdefault(name, len(self._names)),
            len(self._groups),
            lane,
            STATE_NUMBERS[state],
            self._time(submitted),
            began,
            ended,
            self._reasons.setdefault(reason, len(self._reasons)) if reason else -1,
        )

    def _time(self, monotonic: float) -> float:
        return round(monotonic - self._origin, DIGITS)

    def _began(self, record: TaskRecord) -> float:
        """Return when a task started; if that was not reported, the likeliest time."""
        if record.started is not None:
            return self._time(record.started)
        if record.ended is None:
            return self._seconds
        return self._time(record.submitted if record.state == TaskStates.DONE else record.ended)


class _Lanes:
    """Assigns overlapping time spans to lanes, each to the lowest free one."""

    def __init__(self) -> None:
        self.number = 0
        self._free: list[int] = []
        self._taken: list[tuple[float, int]] = []

    def take(self, began: float, ended: float) -> int:
        """Return the lane of a time span; the spans must come in order of their start."""
        while self._taken and self._taken[0][0] <= began:
            heapq.heappush(self._free, heapq.heappop(self._taken)[1])
        if self._free:
            lane = heapq.heappop(self._free)
        else:
            lane, self.number = self.number, self.number + 1
        heapq.heappush(self._taken, (ended, lane))
        return lane


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts "replica 10" after "replica 9"."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in text.split()]


def _first(pair: tuple[float, TaskRecord]) -> float:
    return pair[0]
