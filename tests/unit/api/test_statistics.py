"""Counts by state and latency percentiles, in bounded memory."""

from rhapsody.api.statistics import SAMPLES, BackendStatistics


def test_a_task_is_counted_in_one_state_at_a_time() -> None:
    statistics = BackendStatistics()
    statistics.submitted()
    assert statistics.as_dict()["tasks"] == {"PENDING": 1}
    statistics.started("PENDING")
    assert statistics.as_dict()["tasks"] == {"RUNNING": 1}
    statistics.ended("RUNNING", "DONE", 1.0)
    assert statistics.as_dict()["tasks"] == {"DONE": 1}


def test_percentiles_are_latencies_that_occurred_by_nearest_rank() -> None:
    statistics = BackendStatistics()
    for number in range(100, 0, -1):
        statistics.submitted()
        statistics.ended("PENDING", "DONE", float(number))
    latency = statistics.as_dict()["latency_seconds"]
    assert latency == {"count": 100, "mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "max": 100}


def test_without_tasks_there_are_no_percentiles() -> None:
    assert BackendStatistics().as_dict() == {"tasks": {}, "latency_seconds": {"count": 0}}


def test_only_the_last_latencies_are_kept() -> None:
    statistics = BackendStatistics()
    for number in range(SAMPLES + 5):
        statistics.ended("PENDING", "DONE", float(number))
    latency = statistics.as_dict()["latency_seconds"]
    assert latency["count"] == SAMPLES
    assert latency["max"] == SAMPLES + 4
    assert statistics.as_dict()["tasks"]["DONE"] == SAMPLES + 5
