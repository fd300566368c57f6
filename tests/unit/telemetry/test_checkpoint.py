"""The checkpoint file: what lines it has, and when they are written."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody.telemetry.events import TaskSubmitted, make_event
from rhapsody.telemetry.manager import TelemetryManager

Lines = dict[str, list[dict[str, Any]]]


def read(folder: Path) -> Lines:
    (path,) = folder.glob("*.telemetry.jsonl")
    lines: Lines = {"event": [], "span": [], "metric": []}
    for text in path.read_text().split("\n")[:-1]:  # a last line may be half written
        line = json.loads(text)
        lines[line.pop("section")].append(line)
    return lines


def run(manager: TelemetryManager, uid: str) -> None:
    task = {"uid": uid, "backend": "local", "prompt": "Why?"}
    manager.on_task_submitted(task)
    manager.on_task_state(task, "DONE")


async def test_events_spans_and_metrics_are_in_the_file_after_stop(tmp_path: Path) -> None:
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


async def test_metrics_are_written_at_the_interval(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_interval=0.02, checkpoint_path=str(tmp_path))
    await manager.start()
    for _ in range(500):
        if len(read(tmp_path)["metric"]) >= 2:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("no metrics were written")
    await manager.stop()


async def test_many_lines_are_written_before_the_end(tmp_path: Path) -> None:
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
    await manager.start()
    for number in range(600):
        run(manager, str(number))
    for _ in range(500):
        if len(read(tmp_path)["event"]) >= 1000:
            break
        await asyncio.sleep(0.01)
    before_stop = len(read(tmp_path)["event"])
    await manager.stop()
    assert before_stop >= 1000
    lines = read(tmp_path)
    assert (len(lines["event"]), len(lines["span"])) == (1202, 601)


async def test_a_folder_that_cannot_be_made_fails_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manager = TelemetryManager("s", checkpoint_path=str(tmp_path / "file"))
    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="file"):
        await manager.start()
    assert asyncio.all_tasks() == before
    await manager.stop()


async def test_what_json_cannot_hold_is_written_in_words(tmp_path: Path) -> None:
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


async def test_a_file_that_cannot_be_written_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = TelemetryManager("s", checkpoint_interval=0.01, checkpoint_path=str(tmp_path / "d"))
    await manager.start()
    (path,) = (tmp_path / "d").iterdir()
    path.unlink()
    path.parent.rmdir()
    run(manager, "1")
    for _ in range(200):
        if caplog.records:
            break
        await asyncio.sleep(0.01)
    await manager.stop()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


def test_a_loop_that_ends_without_stop_still_leaves_a_file(tmp_path: Path) -> None:
    async def main() -> None:
        manager = TelemetryManager("s", checkpoint_path=str(tmp_path))
        await manager.start()
        run(manager, "1")
        await asyncio.sleep(0)

    asyncio.run(main())
    lines = read(tmp_path)
    assert lines["event"][-1]["event_type"] == "TaskCompleted"
    assert lines["metric"][-1]["tasks_completed"] == 1
