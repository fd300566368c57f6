"""Runs read from checkpoint files of telemetry."""

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import RhapsodyError
from rhapsody.report.recorded import read_checkpoint
from tests.support.sessions import boom, work


def event(kind: str, uid: str, at: float, **fields: Any) -> str:
    entry = {"section": "event", "event_type": kind, "task_id": uid, "event_time": at}
    return json.dumps({**entry, "backend": "b", "session_id": "s", **fields}) + "\n"


async def test_file_of_a_session_has_its_tasks(tmp_path: Path) -> None:
    async with Session([ConcurrentExecutionBackend()], uid="campaign") as session:
        await session.start_telemetry(checkpoint_path=str(tmp_path))
        tasks = [ComputeTask(function=work), ComputeTask("true"), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    run = read_checkpoint(tmp_path)
    [backend] = run.runs
    assert (run.title, backend.name) == ("campaign", "concurrent")
    assert backend.history.counts == {"DONE": 2, "FAILED": 1}
    assert {record.name for record in backend.records()} == {"work", "true", "boom"}
    assert [failure.reason for failure in backend.history.failures()] == ["ValueError"]
    for record in backend.records():
        assert record.ended is not None
        assert record.submitted <= record.ended


def test_active_tasks_and_times(tmp_path: Path) -> None:
    file = tmp_path / "killed.jsonl"
    file.write_text(
        event("TaskCreated", "a", 10.0, attributes={"executable": "f"})
        + event("TaskSubmitted", "a", 11.0)
        + event("TaskStarted", "a", 13.0, node_id="n1")
        + event("TaskCompleted", "a", 17.0)
        + event("TaskSubmitted", "b", 12.0)
        + event("TaskStarted", "b", 14.0)
        + event("TaskSubmitted", "c", 15.0)
        + '{"section": "event", "event_ty'
    )
    run = read_checkpoint(file)
    [backend] = run.runs
    assert run.last == 17.0
    assert backend.history.counts == {"PENDING": 1, "RUNNING": 1, "DONE": 1}
    first = next(record for record in backend.records() if record.uid == "a")
    assert (first.name, first.place) == ("f", "n1")
    assert first.waiting == pytest.approx(2)
    assert first.running == pytest.approx(4)


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"a": 1}\n'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other"
    file.write_text(text)
    with pytest.raises(RhapsodyError, match="is not a checkpoint file of telemetry: line 1 is"):
        read_checkpoint(file)


def test_files_without_tasks_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RhapsodyError, match="has no file"):
        read_checkpoint(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(RhapsodyError, match="has no event of a task"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("time", ["1e400", "-1", "NaN"])
def test_event_with_an_impossible_time_is_left_out(tmp_path: Path, time: str) -> None:
    file = tmp_path / "run.telemetry.jsonl"
    wrong = event("TaskSubmitted", "wrong", 7.5).replace("7.5", time)
    file.write_text(event("TaskSubmitted", "task.1", 1.0) + wrong)
    assert read_checkpoint(file).last == 1.0
