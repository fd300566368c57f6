"""Submissions: futures of submitted tasks, and the states that backends report."""

import asyncio
from typing import Any

import pytest

from rhapsody import ComputeTask
from rhapsody.api import SessionError, TaskValidationError
from rhapsody.api.submissions.parts import AT_ONCE
from rhapsody.api.submissions.submissions import Submissions
from tests.support.sessions import good, work


class Silent:
    """A backend that keeps tasks and reports nothing."""

    name = "silent"

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    async def submit_tasks(self, tasks: list[Any]) -> None:
        self.tasks += tasks


async def submit(submissions: Submissions, *tasks: Any) -> list[asyncio.Future[Any]]:
    loop = asyncio.get_running_loop()
    futures = await submissions.submit([(Silent(), list(tasks))], loop)
    return [futures[task["uid"]] for task in tasks]


async def test_task_is_pending_after_submission() -> None:
    submissions, task = Submissions(), good()
    await submit(submissions, task)
    assert (task.state, task.backend) == ("PENDING", "silent")
    assert list(submissions.active) == ["good"]


async def test_report_after_the_end_is_ignored() -> None:
    submissions, task = Submissions(), good()
    [future] = await submit(submissions, task)
    submissions.on_state(task, "RUNNING")
    submissions.on_state(task, "DONE")
    submissions.on_state(task, "FAILED")
    assert (await future).state == "DONE"
    assert submissions.active == {}


async def test_uid_stays_taken_as_long_as_the_user_holds_the_ended_task() -> None:
    submissions, task = Submissions(), good()
    await submit(submissions, task)
    submissions.on_state(task, "DONE")
    with pytest.raises(TaskValidationError, match="another task has this uid"):
        submissions.checks.check([good()], set())
    del task
    submissions.checks.check([good()], set())


async def test_report_of_unknown_task_is_ignored() -> None:
    submissions = Submissions()
    submissions.on_state({"uid": "stranger"}, "DONE")
    assert submissions.active == {}


async def test_cancel_remaining_cancels_every_active_task() -> None:
    submissions, tasks = Submissions(), [ComputeTask(function=work) for _ in range(3)]
    await submit(submissions, *tasks)
    submissions.cancel_remaining()
    assert [task.state for task in tasks] == ["CANCELED"] * 3


async def test_find_refuses_unsubmitted_task() -> None:
    with pytest.raises(SessionError, match="task good was not submitted to this session"):
        Submissions().find(good())


async def test_wait_counts_the_tasks_that_have_not_ended() -> None:
    submissions, tasks = Submissions(), [ComputeTask(function=work) for _ in range(AT_ONCE + 1)]
    await submit(submissions, *tasks)
    submissions.on_state(tasks[0], "DONE")
    assert await submissions.wait(tasks, 0.0) == AT_ONCE
    submissions.cancel_remaining()
    assert await submissions.wait(tasks, None) == 0
