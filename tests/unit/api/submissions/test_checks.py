"""Checks of new tasks: uids that are taken, and what is submitted if one task is refused."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import TaskValidationError
from rhapsody.api.submissions.checks import TaskChecks
from rhapsody.api.submissions.parts import AT_ONCE
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import good, work


async def test_check_reserves_no_uid() -> None:
    checks = TaskChecks({})
    checks.check([good()], set())
    checks.check([good()], set())


async def test_check_adds_a_uid_to_a_dict() -> None:
    task: dict[str, Any] = {"function": work}
    TaskChecks({}).check([task], set())
    assert task["uid"] != ""


async def test_check_refuses_taken_uid() -> None:
    with pytest.raises(TaskValidationError, match="another task has this uid"):
        TaskChecks({"good"}).check([good()], set())


async def test_uid_of_a_task_that_the_user_holds_is_taken() -> None:
    checks, task = TaskChecks({}), good()
    checks.hold(task)
    with pytest.raises(TaskValidationError, match="another task has this uid"):
        checks.check([good()], set())
    del task
    checks.check([good()], set())


async def test_uid_of_a_submission_in_progress_is_taken() -> None:
    checks = TaskChecks({})
    with checks.reserve(3) as uids:
        assert checks.entering == 3
        checks.check([good()], uids)
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            checks.check([good()], set())
    assert checks.entering == 0
    checks.check([good()], set())


async def test_nothing_is_submitted_if_the_last_of_many_tasks_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work) for _ in range(2 * AT_ONCE)]
        with pytest.raises(TaskValidationError, match="no backend 'other'"):
            await session.submit_tasks([*tasks, ComputeTask(function=work, backend="other")])
        assert {task.get("state") for task in tasks} == {None}
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)


@pytest.mark.parametrize("make", [lambda x: [[1, x]], lambda x: [{"k": x}], lambda x: [{x}]])
async def test_pending_task_in_a_container_is_refused(make: Callable[[Any], list[Any]]) -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        (future,) = await session.submit_tasks(pending := good())
        for argument in (pending, future):
            task = ComputeTask(function=len, args=make(argument))
            with pytest.raises(TaskValidationError, match="await it and pass its result"):
                await session.submit_tasks(task)


async def test_future_as_an_argument_is_refused() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(TaskValidationError, match=r"'args' contains .*Future.*await it"):
        TaskChecks({}).check([ComputeTask(function=work, args=[future])], set())


async def test_other_tasks_in_a_container_are_arguments() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        await session.submit_tasks(ended := good())
        await ended
        await session.submit_tasks(
            ComputeTask(function=len, args=[[ended, ComputeTask(function=work)]])
        )
