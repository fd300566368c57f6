"""Which of a session's backends gets a task."""

import asyncio

from rhapsody import AITask, ComputeTask, Session
from tests.support.sessions import Compute, Inference, Recording, work


async def test_a_task_goes_to_the_first_backend_that_takes_its_kind() -> None:
    async with Session([Inference("ai", "m"), Compute("cpu")]) as session:
        tasks = [ComputeTask(function=work), AITask("hi"), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["cpu", "ai", "cpu"]
        await asyncio.gather(*tasks)


async def test_a_named_backend_is_taken() -> None:
    first, second = Recording("first"), Recording("second")
    async with Session([first, second]) as session:
        await session.submit_tasks([ComputeTask(function=work, uid="a", backend="second")])
        assert (first.given, second.given) == ([], ["a"])


async def test_a_model_picks_the_backend_that_serves_it() -> None:
    async with Session([Inference("one", "small"), Inference("two", "large")]) as session:
        tasks = [AITask("hi", model="large"), AITask("hi", model="small"), AITask("hi")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["two", "one", "one"]
