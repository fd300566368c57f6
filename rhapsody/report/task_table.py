"""The table of tasks on the page: search by name, uid and reason, filter by state, page by page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rhapsody.backends.core.history import STATES, TaskRecord
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.formatting import format_duration
from rhapsody.report.runs import BackendRun

__all__ = ["MOST_ROWS", "ORDERS", "TaskQuery", "find_tasks"]

MOST_ROWS = 200
"""Rows of one page of the table."""
ORDERS = ("latest", "longest", "waited")


class TaskQuery(NamedTuple):
    """Which tasks the table shows.

    Attributes:
        text: Part of the uid, the name, the place or the reason of a failure; "": any.
        state: The state; "": any.
        order: "latest", "longest" (running time first) or "waited" (longest wait first).
        offset: Number of the first row, from 0.
        limit: Number of rows, up to `MOST_ROWS`.
    """

    text: str = ""
    state: str = ""
    order: str = ORDERS[0]
    offset: int = 0
    limit: int = 50

    @classmethod
    def of(cls, given: Any) -> TaskQuery:
        """Return the query of a mapping of strings, such as the query of a URL.

        Raises:
            ValueError: A value is invalid; the message says which ones are allowed.
        """
        query = cls(
            given.get("text", ""),
            given.get("state", ""),
            given.get("order", ORDERS[0]),
            _whole_number("offset", given.get("offset", "0")),
            _whole_number("limit", given.get("limit", "50")),
        )
        if query.state and query.state not in STATES:
            raise ValueError(f"'state' must be one of {', '.join(STATES)}, got '{query.state}'")
        if query.order not in ORDERS:
            raise ValueError(f"'order' must be one of {', '.join(ORDERS)}, got '{query.order}'")
        return query._replace(limit=min(query.limit, MOST_ROWS))


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"'{name}' must be a whole number that is not negative, got '{text}'")
    return int(text)


def find_tasks(runs: Iterable[BackendRun], query: TaskQuery) -> dict[str, Any]:
    """Find tasks among the latest ones of each backend and all active ones.

    Args:
        runs: The tasks at each backend.
        query: Which tasks.

    Returns:
        For JSON: `found`, the number of tasks found; `kept`, the number of tasks searched; and
        `rows`, those of the query's page, each with uid, name, backend, place, state, waiting time,
        running time and reason.
    """
    now = time.monotonic()
    last = query.offset + query.limit
    kept = number = 0
    first: list[tuple[float, str, TaskRecord]] = []
    for run in runs:
        columns = run.columns()
        found = _matching(columns, query)
        kept += len(columns[0])
        number += len(found)
        keys = _keys(columns, query.order, now)
        found.sort(key=keys.__getitem__, reverse=True)
        for i in found[:last]:
            record = TaskRecord._make(column[i] for column in columns)
            first.append((keys[i], run.name, record))
    first.sort(key=lambda item: item[0], reverse=True)
    return {
        "found": number,
        "kept": kept,
        "rows": [_row(backend, record, now) for _, backend, record in first[query.offset : last]],
    }


def _matching(columns: Sequence[Sequence[Any]], query: TaskQuery) -> list[int]:
    """Return the numbers of the records that match."""
    uids, names, places, states, *_, reasons = columns
    if not query.text:
        if not query.state:
            return list(range(len(uids)))
        return [i for i, state in enumerate(states) if state == query.state]
    text = query.text.lower()
    # There are few different names, places and reasons, and many uids.
    wanted = {value for value in {*names, *places, *reasons} if text in value.lower()}
    return [
        i
        for i, (uid, name, place, reason) in enumerate(
            zip(uids, names, places, reasons, strict=True)
        )
        if (name in wanted or place in wanted or reason in wanted or text in uid.lower())
        and (not query.state or states[i] == query.state)
    ]


def _keys(columns: Sequence[Sequence[Any]], order: str, now: float) -> list[float]:
    """Return the values by which records are ordered, the largest first."""
    *_, submitted, started, ended, _ = columns
    if order == "latest":
        return [at or now for at in ended]
    if order == "longest":
        return [
            -1.0 if since is None else (at or now) - since
            for since, at in zip(started, ended, strict=True)
        ]
    return [
        (since or at or now) - before
        for before, since, at in zip(submitted, started, ended, strict=True)
    ]


def _running(record: TaskRecord, now: float) -> float | None:
    return None if record.started is None else (record.ended or now) - record.started


def _waiting(record: TaskRecord, now: float) -> float | None:
    if record.started is not None:
        return record.started - record.submitted
    if record.state == TaskStates.DONE:  # its backend does not report starts
        return None
    return (record.ended or now) - record.submitted


def _row(backend: str, record: TaskRecord, now: float) -> list[str]:
    return [
        record.uid,
        record.name,
        backend,
        record.place,
        record.state,
        format_duration(_waiting(record, now)),
        format_duration(_running(record, now)),
        record.reason,
    ]
