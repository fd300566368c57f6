"""Backends written for version 0.1 work, and warn about the old names."""

from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import BaseBackend, NoopExecutionBackend, Work

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class OldBackend(BaseBackend):
    async def execute(self, work: Work) -> dict[str, Any]:
        self.running(work, "here")
        if work.task["function"] is min:
            self.fail(work, ValueError("refused"))
        if work.task["function"] is max:
            self.stopped(work)
        if work.task["function"] is sum:
            self.finish(work, "DONE", {"return_value": "early"})
        return {"return_value": work.place}


async def run_tasks(*functions: Any) -> list[ComputeTask]:
    async with Session([OldBackend()]) as session:
        tasks = [ComputeTask(function=function) for function in functions]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    return tasks


async def test_old_names_of_reports_work() -> None:
    with pytest.warns(DeprecationWarning, match="'running' of a backend is now report_running"):
        tasks = await run_tasks(len, min, max, sum)
    assert [task.state for task in tasks] == ["DONE", "FAILED", "CANCELED", "DONE"]
    assert [tasks[0].return_value, tasks[3].return_value] == ["here", "early"]
    assert str(tasks[1].exception) == "refused"


async def test_old_name_of_run_one_works() -> None:
    backend = NoopExecutionBackend()
    with pytest.warns(DeprecationWarning, match="'answer' of a backend is now run_one"):
        assert (await backend.answer({"prompt": "hello"}))["response"] == ""
