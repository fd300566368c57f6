"""Parts of many tasks: the loop does other work between them."""

import asyncio

from rhapsody import ComputeTask, Session
from rhapsody.api.submissions.parts import AT_ONCE
from rhapsody.backends import NoopExecutionBackend
from tests.support.sessions import work


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
