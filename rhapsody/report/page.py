"""The page of a run: one HTML file that needs no other file.

A script of a few kB draws the charts; an interactive plotting library would add several MB to every
page.
"""

from __future__ import annotations

import heapq
import json
import os
import platform
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader

from rhapsody.backends.core.history import RECORDS, STATES, TaskRecord
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.formatting import format_duration
from rhapsody.report.runs import BackendRun

__all__ = ["write_file", "write_page"]

DIGITS = 6
"""Times are written to the microsecond."""


def write_page(
    path: str | os.PathLike[str],
    title: str,
    runs: Sequence[BackendRun],
    present: float | None = None,
) -> Path:
    """Write the page.

    Args:
        path: The file; an existing one is replaced.
        title: The heading of the page.
        runs: The tasks at each backend.
        present: The time to which `time.monotonic` of now corresponds, in seconds since 1970.
            None: now.

    Returns:
        The file's path.

    Raises:
        OSError: The file cannot be written.
    """
    return write_file(path, _render(title, runs, time.time() if present is None else present))


def write_file(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page so that it is whole, or an older one stays.

    Args:
        path: The file; an existing one is replaced.
        text: The page.

    Returns:
        The file's path.

    Raises:
        OSError: The file cannot be written.
    """
    # File names that are not UTF-8 arrive as lone surrogates.
    page = text.encode("utf-8", "backslashreplace")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a pipe or a device
        target.write_bytes(page)
        return Path(path)
    # A page that cannot be written completely must not replace an older one.
    temporary = target.with_name(f".{uuid.uuid4().hex}.html")
    try:
        temporary.write_bytes(page)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Path(path)


def _render(title: str, runs: Sequence[BackendRun], present: float) -> str:
    now = time.monotonic()
    records = [run.records() for run in runs]
    origin = min(
        (record.submitted for of_run in records for record in of_run),
        default=min((run.history.began for run in runs), default=now),
    )
    last = max((r.ended or now for of_run in records for r in of_run), default=now)
    seconds = max(last - origin, 1e-3)
    counts = [run.history.counts for run in runs]
    total = {state: sum(count.get(state, 0) for count in counts) for state in STATES}
    environment = Environment(loader=PackageLoader("rhapsody.report", "."), autoescape=True)
    environment.filters["duration"] = format_duration
    chart = _Chart(origin, seconds)
    for run, of_run in zip(runs, records, strict=True):
        chart.add(run, of_run)
    return environment.get_template("page.html.j2").render(
        title=title,
        began=datetime.fromtimestamp(present - (now - origin)).strftime("%Y-%m-%d %H:%M:%S"),
        seconds=seconds,
        tiles=_tiles(total, seconds),
        backends=[
            _figures(run, of_run, seconds) for run, of_run in zip(runs, records, strict=True)
        ],
        limit_note=_limit_note(runs),
        has_batches=bool(chart.batches),
        failures=sorted(
            ((run.name, failure) for run in runs for failure in run.history.failures()),
            key=lambda item: -item[1].number,
        ),
        versions=f"Rhapsody {version('rhapsody')}, Python {platform.python_version()}",
        data=_embedded(chart.as_dict()),
    )


def _tiles(total: dict[str, int], seconds: float) -> list[tuple[str, str, str]]:
    ended = sum(total[state] for state in TaskStates.terminal_states)
    active = total[TaskStates.PENDING] + total[TaskStates.RUNNING]
    tiles = [
        ("tasks", f"{ended + active:,}", ""),
        ("done", f"{total[TaskStates.DONE]:,}", ""),
        ("failed", f"{total[TaskStates.FAILED]:,}", "failed" if total[TaskStates.FAILED] else ""),
        ("canceled", f"{total[TaskStates.CANCELED]:,}", ""),
    ]
    if active:
        tiles.append(("still active", f"{active:,}", ""))
    return [*tiles, ("ended per second", _rate(ended, seconds), "")]


def _rate(number: int, seconds: float) -> str:
    rate = number / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _limit_note(runs: Sequence[BackendRun]) -> str:
    """Return a note if the page shows only the latest tasks of a backend."""
    if all(run.history.number_ended <= RECORDS for run in runs):
        return ""
    return (
        "Counts and failures include all tasks. Times and charts include only the latest "
        f"{RECORDS:,} tasks of each backend."
    )


def _figures(run: BackendRun, records: Sequence[TaskRecord], seconds: float) -> dict[str, Any]:
    history = run.history
    counts = history.counts
    sizes = [size for _, size in history.batches()]
    return {
        "name": run.name,
        "done": counts.get(TaskStates.DONE, 0),
        "failed": counts.get(TaskStates.FAILED, 0),
        "canceled": counts.get(TaskStates.CANCELED, 0),
        "active": counts.get(TaskStates.PENDING, 0) + counts.get(TaskStates.RUNNING, 0),
        "rate": _rate(history.number_ended, seconds),
        "latency": history.latency_seconds(),
        "waiting": _median(record.waiting for record in records),
        "running": _median(record.running for record in records),
        "batches": len(sizes),
        "per_batch": f"{sum(sizes) / len(sizes):.1f}" if sizes else "",
    }


def _median(times: Iterable[float | None]) -> float | None:
    known = [seconds for seconds in times if seconds is not None]
    return median(known) if known else None


class _Chart:
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
        columns = ("uid", "name", "group", "lane", "state", "submitted", "began", "ended", "reason")
        self._tasks: dict[str, list[Any]] = {column: [] for column in columns}
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
        places = sorted({record.place for record in records}, key=_natural)
        for place in places:
            self._add_group(backend, place, [r for r in records if r.place == place])
        batches = [b for b in run.history.batches() if b[0] >= self._origin]
        if batches:
            times, sizes = zip(*batches, strict=True)
            self.batches.append(
                {"backend": backend, "time": [self._time(t) for t in times], "size": sizes}
            )

    def _add_group(self, backend: int, place: str, records: Sequence[TaskRecord]) -> None:
        name = self._backends[backend]
        label = f"{name}, {place}" if place else name
        lanes = _Lanes()
        for record in sorted(records, key=self._began):
            began = self._began(record)
            ended = None if record.ended is None else self._time(record.ended)
            values = {
                "uid": record.uid,
                "name": self._names.setdefault(record.name, len(self._names)),
                "group": len(self._groups),
                "lane": -1,
                "state": STATES.index(record.state),
                "submitted": self._time(record.submitted),
                "began": began,
                "ended": ended,
                "reason": -1,
            }
            if record.state != TaskStates.PENDING:
                values["lane"] = lanes.take(began, self._seconds if ended is None else ended)
            if record.reason:
                values["reason"] = self._reasons.setdefault(record.reason, len(self._reasons))
            for column, value in values.items():
                self._tasks[column].append(value)
        self._groups.append({"backend": backend, "label": label, "lanes": max(lanes.number, 1)})

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


def _embedded(data: Any) -> str:
    """Return JSON for a script element, which no text in it can close."""
    return json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")
