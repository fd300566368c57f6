"""The data of the charts."""

import time

from rhapsody.backends.core.history import TaskHistory, TaskRecord
from rhapsody.report.charts import ChartData
from rhapsody.report.runs import BackendRun


class Source:
    name = "cpu"

    def __init__(self) -> None:
        self.history = TaskHistory()

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        return []


def test_places_are_groups_in_natural_order() -> None:
    now = time.monotonic()
    source = Source()
    for place in ("replica 10", "replica 9", ""):
        source.history.add(TaskRecord(place, "f", place, "DONE", now, now + 1, now + 2, ""))
    run = BackendRun(source)
    data = ChartData(now, 2.0)
    data.add(run, run.records())
    chart = data.as_dict()
    assert [g["label"] for g in chart["groups"]] == ["cpu", "cpu, replica 9", "cpu, replica 10"]
    assert chart["tasks"]["began"] == [1.0, 1.0, 1.0]
    assert chart["tasks"]["lane"] == [0, 0, 0]
