"""Submissions: futures of submitted tasks, and the states that backends report."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError, TaskExecutionError, TaskValidationError
from rhapsody.api.submissions import AT_ONCE, Submission, Submissions
from rhapsody.backends import NoopExecutionBackend
from tests.support.sessions import good, work
from tests.support.waiting import LIMIT_S


class Silent:
    """A backend that keeps tasks and reports nothing."""

    name = "silent"

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    async def submit_tasks(self, tasks: list[Any]) -> None:
        self.tasks += tasks


def submission_of(task: Any) -> Submission:
    return Submission(task, Silent(), asyncio.get_running_loop().create_future())


async def submit(submissions: Submissions, *tasks: Any) -> list[asyncio.Future[Any]]:
    loop = asyncio.get_running_loop()
    futures = await submissions.submit([(Silent(), list(tasks))], loop)
    return [futures[task["uid"]] for task in tasks]


async def test_future_of_done_task_returns_the_task() -> None:
    task = good()
    submission = submission_of(task)
    submission.settle("DONE")
    assert await submission.future is task
    assert submission.ended.done()


async def test_failure_without_exception_gets_one_from_stderr() -> None:
    task: Any = {"uid": "t", "stderr": "no such file", "exit_code": 2}
    submission = submission_of(task)
    submission.settle("FAILED")
    with pytest.raises(TaskExecutionError, match="exit code 2: no such file"):
        await submission.future
    assert task["exception"].exit_code == 2


async def test_cancelled_task_gets_an_exception() -> None:
    task = good()
    submission = submission_of(task)
    submission.settle("CANCELED")
    with pytest.raises(TaskCancelledError):
        await submission.future
    assert isinstance(task.exception, TaskCancelledError)


async def test_settle_from_thread_wakes_the_loop() -> None:
    submission = submission_of(good())
    thread = threading.Thread(target=submission.settle, args=("DONE",))
    thread.start()
    await asyncio.wait_for(submission.ended, LIMIT_S)
    thread.join()


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


async def test_check_reserves_no_uid() -> None:
    submissions = Submissions()
    submissions.check([good()], set())
    submissions.check([good()], set())


async def test_check_adds_a_uid_to_a_dict() -> None:
    task: dict[str, Any] = {"function": work}
    Submissions().check([task], set())
    assert task["uid"] != ""


async def test_check_refuses_taken_uid() -> None:
    submissions, task = Submissions(), good()
    await submit(submissions, task)
    with pytest.raises(TaskValidationError, match="another task has this uid"):
        submissions.check([good()], set())


async def test_uid_of_a_submission_in_progress_is_taken() -> None:
    submissions = Submissions()
    with submissions.reserve() as uids:
        submissions.check([good()], uids)
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            submissions.check([good()], set())
    submissions.check([good()], set())


async def test_many_tasks_are_submitted_and_awaited_in_parts() -> None:
    passes = 0

    async def count_passes() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_passes())
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work) for _ in range(4 * AT_ONCE)]
        before = passes
        await session.submit_tasks(tasks)
        assert passes - before >= 3 * 4  # checked, added and handed over in four parts each
        await session.wait_tasks(tasks)
    counting.cancel()
    assert {task.state for task in tasks} == {"DONE"}


async def test_nothing_is_submitted_if_the_last_of_many_tasks_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work) for _ in range(2 * AT_ONCE)]
        with pytest.raises(TaskValidationError, match="no backend 'other'"):
            await session.submit_tasks([*tasks, ComputeTask(function=work, backend="other")])
        assert {task.get("state") for task in tasks} == {None}
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)


async def test_wait_counts_the_tasks_that_have_not_ended() -> None:
    submissions, tasks = Submissions(), [ComputeTask(function=work) for _ in range(AT_ONCE + 1)]
    await submit(submissions, *tasks)
    submissions.on_state(tasks[0], "DONE")
    assert await submissions.wait(tasks, 0.0) == AT_ONCE
    submissions.cancel_remaining()
    assert await submissions.wait(tasks, None) == 0
