"""One submission: its futures, and the exception of a task that did not succeed."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody.api import TaskCancelledError, TaskExecutionError
from rhapsody.api.submissions.submission import Submission
from tests.support.sessions import good
from tests.support.waiting import LIMIT_S


def submission_of(task: Any) -> Submission:
    return Submission(task, None, asyncio.get_running_loop().create_future())


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
