import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend
from rhapsody.testing.owners import FakeEngine, Reports
from rhapsody.testing.samples import add, function


class TaskObject:
    """A task that is an object with `as_dict`."""

    def as_dict(self) -> dict[str, Any]:
        return {"uid": "object"}


async def test_reports_are_recorded_in_order() -> None:
    reports = Reports()
    task = {"uid": "one"}
    reports.callback(task, "RUNNING")
    reports.callback(task, "DONE")
    assert reports.states("one") == ["RUNNING", "DONE"]
    assert [report.state for report in reports.terminal("one")] == ["DONE"]
    assert (await reports.end("one")).thread == threading.get_ident()


async def test_end_waits_for_the_terminal_report() -> None:
    reports = Reports()
    end = asyncio.ensure_future(reports.end("one"))
    reports.callback({"uid": "one"}, "RUNNING")
    await asyncio.sleep(0)
    assert not end.done()
    reports.callback({"uid": "one"}, "FAILED")
    assert (await end).state == "FAILED"


def test_uid_of_a_task_object_is_read_by_as_dict() -> None:
    reports = Reports()
    reports.callback(TaskObject(), "DONE")
    assert reports.log[0].uid == "object"


async def test_engine_attaches_and_runs_tasks(tmp_path: Path) -> None:
    backend, engine = NoopExecutionBackend(), FakeEngine(tmp_path, "engine.1")
    engine.attach(backend)
    assert Path(backend._work_dir) == tmp_path / "engine.1"
    assert Path(backend._work_dir).is_dir()
    assert backend.is_attached
    assert backend.attached_to == ["engine.1"]
    ends = await engine.run(backend, *(function(uid, add, 1, 2) for uid in ("a", "b")))
    assert [(end.uid, end.state) for end in ends] == [("a", "DONE"), ("b", "DONE")]


@pytest.mark.parametrize("shutdown", [False, True])
async def test_backend_accepts_another_engine_after_close(shutdown: bool, tmp_path: Path) -> None:
    backend = NoopExecutionBackend()
    first, second = (FakeEngine(tmp_path, f"engine.{n}") for n in (1, 2))
    first.attach(backend)
    if shutdown:
        await first.shutdown(backend)
    else:
        first.close()
    second.attach(backend)
    assert backend.attached_to == ["engine.1", "engine.2"]
