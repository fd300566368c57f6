"""The tasks of a run that a checkpoint file of telemetry recorded, for the page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rhapsody.backends.core.history import TaskHistory, TaskRecord
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import RhapsodyError
from rhapsody.report.page import PageSource
from rhapsody.report.runs import BackendRun

__all__ = ["RecordedRun", "read_checkpoint"]

PATTERN = "*.telemetry.jsonl"
"""The names of checkpoint files."""

LAST_TIME = 1e11
"""Seconds since 1970; later times of events are wrong."""

ENDS = {
    "TaskCompleted": TaskStates.DONE,
    "TaskFailed": TaskStates.FAILED,
    "TaskCanceled": TaskStates.CANCELED,
}


class RecordedRun:
    """A run as a file recorded it.

    Attributes:
        title: The uid of its session, or of its engine.
        runs: Its tasks, by backend.
        last: The time of its last event, in seconds since 1970.
    """

    def __init__(self, title: str, runs: list[BackendRun], last: float) -> None:
        self.title = title
        self.runs = runs
        self.last = last

    def page(self, title: str | None = None) -> PageSource:
        """Return what the page of the run shows.

        Args:
            title: Heading of the page. None: the uid of the session or engine.
        """
        return PageSource(title or self.title, lambda: self.runs, present=self.last)


def read_checkpoint(path: str | os.PathLike[str]) -> RecordedRun:
    """Read a checkpoint file of telemetry; the program that writes it may still run.

    Args:
        path: The file, or a directory of such files, of which the newest is read.

    Raises:
        OSError: The file cannot be read.
        RhapsodyError: It is not a checkpoint file of telemetry, or has no event of a task.
    """
    file = _newest_in(Path(path)) if Path(path).is_dir() else Path(path)
    tasks: dict[str, dict[str, Any]] = {}
    title, last = "", 0.0
    for event in _events(file):
        last = max(last, event["event_time"])
        title = title or event.get("session_id") or ""
        if event.get("task_id") is not None:
            _apply(event, tasks)
    if not tasks:
        raise RhapsodyError(
            f"{file} has no event of a task; pass a file that telemetry wrote because of "
            "checkpoint_path=, such as telemetry/<session>.<time>.telemetry.jsonl"
        )
    # The page reckons by `time.monotonic`: its present is the last event.
    offset = time.monotonic() - last
    backends: dict[str, _RecordedBackend] = {}
    for uid, task in tasks.items():
        name = task["backend"]
        if name not in backends:
            backends[name] = _RecordedBackend(name or "unknown")
        backends[name].add(_record(uid, task, offset))
    return RecordedRun(title or file.name, [BackendRun(b) for b in backends.values()], last)


class _RecordedBackend:
    """The tasks of one backend."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = TaskHistory()
        self._active: list[TaskRecord] = []

    def add(self, record: TaskRecord) -> None:
        self.history.add(record)
        if record.ended is None:
            self._active.append(record)

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        """Return records of the tasks that had not ended."""
        return self._active


def _newest_in(directory: Path) -> Path:
    files = sorted(directory.glob(PATTERN), key=lambda file: file.stat().st_mtime)
    if not files:
        raise RhapsodyError(f"{directory} has no file {PATTERN}; pass the directory of telemetry")
    return files[-1]


def _events(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return  # the program writes it now, or was killed meanwhile
            try:
                entry = json.loads(line)
                is_event = entry["section"] == "event" and entry.get("event_type") is not None
                if is_event and _is_time(entry["event_time"]):
                    yield entry
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RhapsodyError(
                    f"{file} is not a checkpoint file of telemetry: line {number} is {line!r:.60}"
                ) from None


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= LAST_TIME


def _apply(event: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> None:
    kind, at = event["event_type"], event["event_time"]
    task = tasks.setdefault(
        str(event["task_id"]),
        {"backend": "", "name": "", "place": "", "state": TaskStates.PENDING, "submitted": at},
    )
    task["backend"] = event.get("backend") or task["backend"]
    task["place"] = event.get("node_id") or task["place"]
    task["name"] = (event.get("attributes") or {}).get("executable") or task["name"]
    if kind == "TaskSubmitted":
        task["submitted"] = at
    elif kind == "TaskStarted":
        task.update(state=TaskStates.RUNNING, started=at)
    elif kind in ENDS:
        task.update(state=ENDS[kind], ended=at, reason=event.get("error_type") or "")


def _record(uid: str, task: dict[str, Any], offset: float) -> TaskRecord:
    started, ended = task.get("started"), task.get("ended")
    return TaskRecord(
        uid,
        task["name"] or "task",
        task["place"],
        task["state"],
        task["submitted"] + offset,
        None if started is None else started + offset,
        None if ended is None else ended + offset,
        task.get("reason", ""),
    )
