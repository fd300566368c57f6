"""The tasks of one owner at one backend, with the backend's history or the owner's."""

from typing import Any

from rhapsody.backends.core.history import TaskHistory, TaskRecord
from rhapsody.report.runs import BackendRun, OwnerHistory, runs_of


class Foreign:
    """A backend without a history."""

    name = "foreign"


class WithHistory:
    """A backend whose history is scripted."""

    name = "mine"

    def __init__(self, active: list[TaskRecord]) -> None:
        self.history = TaskHistory()
        self.active = active

    def active_records(self, history: TaskHistory) -> list[TaskRecord]:
        assert history is self.history
        return self.active

    def get_statistics(self) -> dict[str, Any]:
        return {"pending": 1}


def task(uid: str, **fields: Any) -> dict[str, Any]:
    return {"uid": uid, "function": task, **fields}


def states(run: BackendRun) -> dict[str, str]:
    return {record.uid: record.state for record in run.records()}


def test_owner_history_follows_the_states_of_its_tasks() -> None:
    history = OwnerHistory()
    run = BackendRun(Foreign(), history)
    for uid in "abc":
        history.submitted(task(uid))
    history.on_state(task("a"), "RUNNING")
    history.on_state(task("b"), "DONE")
    assert states(run) == {"a": "RUNNING", "b": "DONE", "c": "PENDING"}


def test_repeated_start_keeps_the_first_time() -> None:
    history = OwnerHistory()
    history.submitted(task("a"))
    history.on_state(task("a"), "RUNNING")
    [first] = history.active_records(history.history)
    history.on_state(task("a"), "RUNNING")
    [second] = history.active_records(history.history)
    assert first.started == second.started is not None


def test_failure_has_the_reason_of_its_exception() -> None:
    history = OwnerHistory()
    history.submitted(task("a"))
    history.on_state(task("a", exception=OSError("no disk")), "FAILED")
    [failure] = history.history.failures()
    assert failure.reason == "OSError: no disk"
    assert history.active_records(history.history) == []


def test_task_ending_while_records_are_read_appears_once() -> None:
    history = OwnerHistory()
    history.submitted(task("a"))
    stale = history.active_records(history.history)
    history.on_state(task("a"), "DONE")
    backend = WithHistory(stale)
    backend.history = history.history
    assert [record.state for record in BackendRun(backend).records()] == ["DONE"]


def test_statistics_come_from_the_backend() -> None:
    assert BackendRun(WithHistory([])).statistics() == {"pending": 1}
    assert BackendRun(Foreign(), OwnerHistory()).statistics() == {}


def test_runs_include_only_backends_with_a_history() -> None:
    backends = [WithHistory([]), Foreign()]
    assert [run.name for run in runs_of(backends)] == ["mine"]
