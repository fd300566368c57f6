"""The checkpoint file: its lines, and when they are written."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody.telemetry.events import TaskSubmitted, make_event
from rhapsody.telemetry.manager import TelemetryManager
from tests.support.waiting import until

Lines = dict[str, list[dict[str, Any]]]


def read(folder: Path) -> Lines:
    (path,) = folder.glob("*.telemetry.jsonl")
    lines: Lines = {"event": [], "span": [], "metric": []}
    for text in path.read_text().split("\n")[:-1]:  # the last line may be incomplete
        line = json.loads(text)
        lines[line.pop("section")].append(line)
    return lines


def run(manager: TelemetryManager, uid: str) -> None:
    task = {"uid": uid, "backend": "local", "prompt": "Why?"}
    manager.on_task_submitted(task)
    manager.on_task_state(task, "DONE")


async def test_file_has_events_spans_and_metrics_after_stop(tmp_path: Path) -> None:
    manager = TelemetryManager("session/1", checkpoint_path=str(tmp_path / "new"))
    await manager.start()
    run(manager, "task.1")
    await manager.stop()
    lines = read(tmp_path / "new")
    assert [line["event_type"] for line in lines["event"]] == [
        "SessionStarted",
        "TaskSubmitted",
        "TaskCompleted",
        "SessionEnded",
    ]
    assert [line["name"] for line in lines["span"]] == ["task", "session"]
    assert lines["span"][0]["attributes"]["task_id"] == "task.1"
    assert lines["metric"][-1]["tasks_completed"] == 1
    assert lines["metric"][-1]["lines_dropped"] == 0


async def test_events_have_the_trace_of_their_session(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
    await manager.start()
    run(manager, "task.1")
    await manager.stop()
    lines = read(tmp_path)
    task, session = lines["span"]
    assert {line["trace_id"] for line in lines["event"]} == {session["trace_id"]}
    assert [line["span_id"] for line in lines["event"]] == [
        session["span_id"],
        None,  # the span of a task is made when the task ends
        task["span_id"],
        session["span_id"],
    ]


async def test_metrics_are_written_at_the_interval(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_interval=0.02, checkpoint_path=str(tmp_path))
    await manager.start()
    await until(lambda: len(read(tmp_path)["metric"]) >= 2)
    await manager.stop()


async def test_many_lines_are_written_before_stop(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
    await manager.start()
    for number in range(600):
        run(manager, str(number))
    await until(lambda: len(read(tmp_path)["event"]) >= 1000)
    await manager.stop()
    lines = read(tmp_path)
    assert (len(lines["event"]), len(lines["span"])) == (1202, 601)


async def test_start_fails_if_the_directory_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path / "file"))
    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="file"):
        await manager.start()
    assert asyncio.all_tasks() == before
    await manager.stop()


async def test_unserializable_values_are_written_as_text(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
    await manager.start()
    for attributes in ({"value": {1, 2}}, {(1, 2): "a key"}):
        manager.emit(
            make_event(
                TaskSubmitted, session_id="s", backend="b", task_id="t", attributes=attributes
            )
        )
    await manager.stop()
    _, readable, unreadable, _ = read(tmp_path)["event"]
    assert readable["attributes"] == {"value": "{1, 2}"}
    assert "(1, 2): 'a key'" in unreadable["repr"]


async def test_write_error_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = TelemetryManager("s", checkpoint_interval=0.01, checkpoint_path=str(tmp_path / "d"))
    await manager.start()
    (path,) = (tmp_path / "d").iterdir()
    path.unlink()
    path.parent.rmdir()
    run(manager, "1")
    await until(lambda: caplog.records)
    await manager.stop()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


def test_file_is_written_if_the_loop_ends_without_stop(tmp_path: Path) -> None:
    async def main() -> None:
        manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
        await manager.start()
        run(manager, "1")
        await asyncio.sleep(0)

    asyncio.run(main())
    lines = read(tmp_path)
    assert lines["event"][-1]["event_type"] == "TaskCompleted"
    assert lines["metric"][-1]["tasks_completed"] == 1
