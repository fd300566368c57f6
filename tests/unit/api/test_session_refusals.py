"""Tasks that a session refuses before any is submitted."""

import asyncio
import gc
from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import SessionError, TaskValidationError
from rhapsody.backends import NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Compute, Inference, Recording, good, work


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (ComputeTask(function=work, backend="gpu"), "no backend 'gpu'; it has 'cpu', 'ai'"),
        (AITask("hi", backend="cpu"), "'cpu' cannot run a prompt task; these can: 'ai'"),
        (ComputeTask(function=work, backend="ai"), "cannot run a function task.*these can: 'cpu'"),
        (AITask("hi", model="huge"), "no backend serves the model 'huge'; served: 'small'"),
        (ComputeTask(function=work, uid="good"), "another task has this uid"),
        ({"colour": "red"}, "set 'function' or 'executable'"),
        ({"prompt": "hi", "temperature": -1}, "'temperature' must be"),
        ("echo hi", "a task is a ComputeTask, an AITask or a dict, not str"),
    ],
)
async def test_one_wrong_task_is_refused_before_any_is_submitted(bad: Any, words: str) -> None:
    cpu = Recording("cpu")
    cpu.task_kinds = Compute.task_kinds
    async with Session([cpu, Inference("ai", "small")]) as session:
        with pytest.raises(TaskValidationError, match=words):
            await session.submit_tasks([good(), bad])
        assert cpu.given == []
        assert session.get_statistics()["tasks"] == {}
        await session.submit_tasks([good()])  # what was refused left no trace


async def test_a_kind_that_no_backend_takes_is_refused_with_the_backends_there_are() -> None:
    async with Session([Compute("cpu")]) as session:
        with pytest.raises(TaskValidationError, match="takes prompt tasks; it has 'cpu'"):
            await session.submit_tasks([AITask("hi")])


async def test_a_session_without_backends_refuses_tasks() -> None:
    async with Session() as session:
        with pytest.raises(SessionError, match="no backends"):
            await session.submit_tasks([good()])


async def test_a_task_is_submitted_once_only() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        with pytest.raises(TaskValidationError, match="submitted before; make a new task"):
            await session.submit_tasks([task])
        await task
        with pytest.raises(TaskValidationError, match="submitted before"):
            await session.submit_tasks([task])


async def test_the_same_task_twice_in_one_list_is_refused() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        task = good()
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([task, task])
        assert backend.given == []


async def test_the_uid_of_an_active_task_is_taken(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([{"function": work, "uid": "same"}])
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([ComputeTask(function=work, uid="same")])


async def test_the_uid_of_a_task_that_is_gone_can_be_used_again() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        for _ in range(2):
            task = ComputeTask(function=work, uid="again")
            await session.submit_tasks([task])
            await task
            del task
            await asyncio.sleep(0)  # the loop's present step still holds the future
            gc.collect()
