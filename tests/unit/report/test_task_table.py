"""The table of tasks: what a search finds, in which order, and page by page."""

import time
from typing import Any

import pytest

from rhapsody.backends.core.history import TaskHistory, TaskRecord
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.runs import BackendRun
from rhapsody.report.task_table import MOST_ROWS, TaskQuery, find_tasks

NOW = time.monotonic()


class Source:
    """A backend with given records."""

    def __init__(self, name: str, *records: TaskRecord) -> None:
        self.name = name
        self.history = TaskHistory()
        for record in records:
            self.history.add(record)
        self.active = [record for record in records if record.ended is None]

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        return self.active


def ended(uid: str, name: str, at: float, took: float = 1.0, state: str = "DONE") -> TaskRecord:
    reason = "ValueError: too hot" if state == "FAILED" else ""
    return TaskRecord(uid, name, "node 3", state, at - took - 1, at - took, at, reason)


RUNS = [
    BackendRun(
        Source(
            "cpu",
            ended("a.1", "simulate", NOW - 30, took=9),
            ended("a.2", "simulate", NOW - 20, state="FAILED"),
            TaskRecord("a.3", "analyse", "", TaskStates.PENDING, NOW - 5, None, None, ""),
        )
    ),
    BackendRun(Source("gpu", ended("b.1", "train", NOW - 25))),
]


def found(**query: Any) -> list[str]:
    return [row[0] for row in find_tasks(RUNS, TaskQuery.of(query))["rows"]]


def test_search_finds_uid_name_place_and_reason() -> None:
    assert found(text="A.2") == ["a.2"]
    assert found(text="TRAIN") == ["b.1"]
    assert found(text="too hot") == ["a.2"]
    assert len(found(text="node 3")) == 3
    assert found(text="nothing") == []


def test_state_is_a_filter() -> None:
    assert found(state="FAILED") == ["a.2"]
    assert found(state="PENDING") == ["a.3"]
    assert found(state="FAILED", text="train") == []


def test_orders() -> None:
    assert found() == ["a.3", "a.2", "b.1", "a.1"]
    assert found(order="longest")[0] == "a.1"
    assert found(order="waited")[0] == "a.3"


def test_pages() -> None:
    answer = find_tasks(RUNS, TaskQuery.of({"offset": "1", "limit": "2"}))
    assert (answer["found"], answer["kept"]) == (4, 4)
    assert [row[0] for row in answer["rows"]] == ["a.2", "b.1"]
    assert TaskQuery.of({"limit": "100000"}).limit == MOST_ROWS


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("state", "OK", "'state' must be one of PENDING, RUNNING"),
        ("order", "up", "'order' must be one of latest, longest, waited"),
        ("limit", "x", "'limit' must be a whole number"),
        ("offset", "²", "'offset' must be a whole number"),
    ],
)
def test_wrong_query_is_refused(field: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskQuery.of({field: value})
